"""Whether everything that should train gets a gradient, asked at the first steps in which it can.

The language model learns from every step. The vision tower and its mergers learn only from a step in which some rank
shows a picture: a step of text alone still runs a trained tower (on a blank picture, data/collator.py), so that its
gradient is zero there and not missing. AdamW then treats a step alike however its rows lie on ranks and micro-batches:
moments shrink and weights decay, as for any gradient of zero.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from qwenvl_agent.model.build import family_of

CHECKED_STEPS = 2
"""At the first, LoRA's A has a gradient of exactly zero, because B is zero; at the second none should."""


class GradientCheck:
    """Called after each step's backward; counts the steps from which this rank knows that a part could learn.

    A picture on this rank makes a gradient of the tower on all ranks, so no rank has to know of the others' pictures.
    DeepSpeed keeps gradients elsewhere: under it the steps are counted and nothing is checked.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module):
        self.accelerator, self.model = accelerator, model
        self.is_vision = family_of(model).paths.is_vision
        self.is_readable = accelerator.distributed_type != DistributedType.DEEPSPEED
        self.num_steps = {"language model": 0, "vision": 0}
        self.unread: list[tuple[list[str], torch.Tensor]] = []

    def __call__(self, num_pictures: int) -> None:
        """AssertionError names a parameter that has no gradient; one whose gradient is zero is named by `read`.

        `num_pictures` is that of this rank's micro-batches, the blank ones left out.
        """
        for part, can_learn in (("language model", True), ("vision", num_pictures > 0)):
            if not can_learn:
                continue
            if self.is_readable and self.num_steps[part] < CHECKED_STEPS:
                named = self.model.named_parameters()
                parameters = {name: p for name, p in named if self.is_vision(name) == (part == "vision")}
                trainable = check_gradients(parameters)
                if self.num_steps[part] and trainable:
                    self.unread.append((trainable, torch.stack([parameters[name].grad.any() for name in trainable])))
            self.num_steps[part] += 1

    def read(self) -> None:
        """AssertionError names a parameter whose gradient was zero everywhere, and should not have been."""
        unread, self.unread = self.unread, []
        for names, flags in unread:
            for name, is_nonzero in zip(names, flags.tolist(), strict=True):
                assert is_nonzero, f"{name}: the gradient is zero everywhere, so it does not train"

    def untrained(self) -> str:
        """A sentence for people on what was to train and had nothing to learn from; "" if there is no such part.

        All ranks must ask: a picture on any of them is one.
        """
        num_shown = torch.tensor(float(self.num_steps["vision"]), device=self.accelerator.device)
        if self.accelerator.reduce(num_shown, "sum").item() or not self.num_steps["language model"]:
            return ""
        names = [name for name, p in self.model.named_parameters() if p.requires_grad and self.is_vision(name)]
        if not names:
            return ""
        return (
            f"no step showed a picture: {len(names)} trainable tensors of the vision tower and its mergers "
            f"({names[0]} ...) got no gradient and learned nothing; give rows with pictures, or leave them out of "
            "model.lora_places and model.train_vision"
        )


def check_gradients(parameters: dict[str, nn.Parameter]) -> list[str]:
    """The names of the trainable ones; asserts a gradient in each of them and none in a frozen one."""
    for name, parameter in parameters.items():
        found = "no gradient" if parameter.grad is None else "a gradient"
        assert (parameter.grad is not None) == parameter.requires_grad, (
            f"{name} has {found}, and requires_grad is {parameter.requires_grad}"
        )
    return [name for name, parameter in parameters.items() if parameter.requires_grad]
