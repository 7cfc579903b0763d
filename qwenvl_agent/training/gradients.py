"""Whether everything that should train gets a gradient, asked at the first steps in which it can.

The language model learns from every step. The vision tower and its mergers learn only from a step in which some rank
shows a picture: a step of text alone still runs a trained tower (on a blank picture, data/collator.py), so that its
gradient is zero there and not missing. AdamW then treats a step alike however its rows lie on ranks and micro-batches:
moments shrink and weights decay, as for any gradient of zero.
"""

from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from qwenvl_agent.model.build import family_of

CHECKED_STEPS = 2
"""At the first, LoRA's A has a gradient of exactly zero, because B is zero; at the second none should."""


class GradientCheck:
    """Called after each step's backward; counts the steps from which each part could learn.

    DeepSpeed keeps gradients elsewhere: under it the steps are counted and nothing is checked.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module):
        self.model = model
        self.is_vision = family_of(model).paths.is_vision
        self.is_readable = accelerator.distributed_type != DistributedType.DEEPSPEED
        self.num_steps = {"language model": 0, "vision": 0}

    def __call__(self, num_pictures: float) -> None:
        """AssertionError names a parameter that has no gradient, or one of zero, and should have another.

        `num_pictures` is that of all ranks and micro-batches, the blank ones left out.
        """
        for part, can_learn in (("language model", True), ("vision", num_pictures > 0)):
            if not can_learn:
                continue
            if self.is_readable and self.num_steps[part] < CHECKED_STEPS:
                names = [
                    name for name, _ in self.model.named_parameters() if self.is_vision(name) == (part == "vision")
                ]
                check_gradients(self.model, names, should_be_nonzero=self.num_steps[part] > 0)
            self.num_steps[part] += 1

    def untrained(self) -> str:
        """A sentence for people on what was to train and had nothing to learn from; "" if there is no such part."""
        if self.num_steps["vision"] or not self.num_steps["language model"]:
            return ""
        names = [name for name, p in self.model.named_parameters() if p.requires_grad and self.is_vision(name)]
        if not names:
            return ""
        return (
            f"no step showed a picture: {len(names)} trainable tensors of the vision tower and its mergers "
            f"({names[0]} ...) got no gradient and learned nothing; give rows with pictures, or leave them out of "
            "model.lora_places and model.train_vision"
        )


def check_gradients(model: nn.Module, names: Sequence[str], should_be_nonzero: bool) -> None:
    """Assert a gradient in every trainable parameter of `names` and none in a frozen one."""
    parameters = dict(model.named_parameters())
    for name in names:
        parameter = parameters[name]
        found = "no gradient" if parameter.grad is None else "a gradient"
        assert (parameter.grad is not None) == parameter.requires_grad, (
            f"{name} has {found}, and requires_grad is {parameter.requires_grad}"
        )
        if should_be_nonzero and parameter.requires_grad:
            assert parameter.grad.any(), f"{name}: the gradient is zero everywhere, so it does not train"
