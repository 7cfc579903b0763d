"""AdamW whose averages of matrices are 8 bits a number, in pages that leave the GPU for the host's memory where it is full.

bitsandbytes' optimizer, with what a run needs of it: it takes no step where `found_inf` is set (training/finite.py), its
state is tensors of their own that a checkpoint can hold, and what is loaded lies in pages again.

bitsandbytes waits for the GPU after every parameter, so that to look at `found_inf` on the host costs nothing more.
On a CPU, which has no pages, the same numbers lie in its memory.
"""

import torch
from bitsandbytes import __version__
from bitsandbytes.optim import AdamW
from torch import nn

CODE_BOOKS = ("qmap1", "qmap2")
"""What each of the 256 values of a byte means: the same for all parameters, and shared by them."""
PAGED_FROM = 100_000
"""Numbers of a parameter; the averages of smaller ones stay on the GPU."""


class PagedAdamW8bit(AdamW):
    """Groups say how their averages are kept: `optim_bits` 8 or 32."""

    found_inf: torch.Tensor | None = None
    """(): 1 where a step is not to be taken; it may lie on the device."""

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float]):
        device = groups[0]["params"][0].device
        check_device(device)
        super().__init__(groups, lr=lr, betas=betas, optim_bits=8, is_paged=device.type != "cpu")

    def get_config(self, gindex: int, pindex: int, group: dict) -> dict:
        return super().get_config(gindex, pindex, group) | {"optim_bits": group["optim_bits"]}

    def step(self, closure=None):
        """Change nothing, neither weights nor averages, where `found_inf` is set."""
        return None if self.found_inf is not None and self.found_inf else super().step(closure)

    def state_dict(self) -> dict:
        """As torch's AdamW gives it: by the parameter's number, tensors alone, each its own."""
        groups = super().state_dict()["param_groups"]
        numbers = {id(p): number for number, p in enumerate(self._parameters())}
        state = {
            numbers[id(parameter)]: {k: torch.as_tensor(v) for k, v in kept.items() if k not in CODE_BOOKS}
            for parameter, kept in self.state.items()
        }
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict, move_to_device: bool = True) -> None:
        """The inverse of `state_dict`, into pages; ValueError for the state of another optimizer."""
        super().load_state_dict(state_dict | {"state": {}}, move_to_device)
        places = [(g, i, p) for g, group in enumerate(self.param_groups) for i, p in enumerate(group["params"])]
        for number, saved in state_dict["state"].items():
            group, index, parameter = places[number]
            if saved:
                self.init_state(self.param_groups[group], parameter, group, index)
                fill(self.state[parameter], saved)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def fill(state: dict, saved: dict[str, torch.Tensor]) -> None:
    """Copy `saved` into one parameter's new `state`."""
    own = {key: value for key, value in state.items() if key not in CODE_BOOKS}
    for key, value in own.items():
        value = torch.as_tensor(value)
        if key not in saved or saved.keys() != own.keys() or saved[key].shape != value.shape:
            raise ValueError(
                f"the optimizer's state has {', '.join(sorted(saved))}, and 8-bit AdamW of bitsandbytes {__version__} keeps "
                f"{', '.join(sorted(own))}: the checkpoint is of another optimizer; set train.optimizer as it was, or begin "
                "another run with its weights (model.init_from)"
            )
        if key == "step":
            state[key] = int(saved[key])
        else:
            value.copy_(saved[key])


def check_device(device: torch.device) -> None:
    """ValueError, before anything is loaded or trained, if bitsandbytes cannot take such a step there."""
    parameter = nn.Parameter(torch.zeros(PAGED_FROM, device=device))
    parameter.grad = torch.zeros_like(parameter)
    probe = AdamW([parameter], optim_bits=8, is_paged=device.type != "cpu")
    try:
        probe.step()
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as error:
        raise ValueError(
            f"train.optimizer is paged_adamw_8bit, and bitsandbytes {__version__} cannot take its step on {device.type} "
            f"({' '.join(str(error).split())[:300]}): nothing could be trained; set train.optimizer=adamw, or install a "
            "bitsandbytes for this device (python -m bitsandbytes says what it found)"
        ) from None
