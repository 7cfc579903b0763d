"""A loss or a gradient that is not finite takes no step, and is named when the run next logs or saves.

To look at each loss on the host would stop a GPU at each. So the device keeps a flag: from the first value on that is not
finite `optimizer.step()` changes nothing, neither weights nor averages. Values and rows are kept until `read`, which every
logged and every saved step calls on all ranks before anything is written. So a checkpoint and a log line are never of such
a step or of one after it. What is lost is the time of the steps until then, at most train.log_every of them.

DeepSpeed steps inside `backward` and looks at the gradient norm itself, on the host: it skips such a step, and its norm is
a float here, so that the run ends at once.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

SCALE, LOSS, GRADIENT_NORM = "scale", "loss", "gradient norm"


class Seen(NamedTuple):
    """One value of a step, and the rows it is of; a `Failure` once it is a float that is not finite."""

    step: int
    what: str
    value: torch.Tensor | float
    rows: tuple[tuple[str, str], ...]
    """Id and file:line of each."""


class FiniteCheck:
    """Sees the values of each step on their device, keeps `optimizer` from steps, and reads them when it is told to."""

    def __init__(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer):
        self.failed = torch.zeros((), device=accelerator.device)
        self.seen: list[Seen] = []
        # The fused AdamW takes no step where this is 1; it is what torch's GradScaler sets. Not of Accelerate's wrapper.
        getattr(optimizer, "optimizer", optimizer).found_inf = self.failed

    def see(self, what: str, value: torch.Tensor | float, step: int, micro_batches: Sequence[dict]) -> None:
        """`value` is () and stays where it is; a float that is not finite is a ValueError at once."""
        if isinstance(value, torch.Tensor):
            value = value.detach()
            self.failed.masked_fill_(~torch.isfinite(value), 1.0)
        elif math.isfinite(value):
            return
        rows = tuple(pair for b in micro_batches for pair in zip(b["row_ids"], b["sources"], strict=True))
        self.seen.append(Seen(step, what, value, rows))
        if not isinstance(value, torch.Tensor):
            self.read()

    def read(self) -> None:
        """ValueError, the same on all ranks, which must all call this, if a value since the last call was not finite."""
        seen, self.seen = self.seen, []
        # Of one dtype and on one device, which most are already.
        alike = [torch.as_tensor(one.value, dtype=torch.float32, device=self.failed.device) for one in seen]
        values = torch.stack(alike).tolist() if alike else []
        mine = [one._replace(value=v) for one, v in zip(seen, values, strict=True) if not math.isfinite(v)]
        failures = gather_object(mine[:1])
        if failures:
            raise ValueError(describe(failures))


def spoiled(loss: torch.Tensor) -> torch.Tensor:
    """The loss; where it is not finite, with a gradient that is not finite either, so that no rank takes the step.

    (An infinite loss can have a finite gradient.)
    """
    return loss * (1 + 0 * loss.detach())


def describe(failures: Sequence[Seen]) -> str:
    """Of the earliest step; its loss, of which the rows are known, before the gradient's norm, which is all ranks'."""
    first = min(failures, key=lambda failure: (failure.step, (SCALE, LOSS, GRADIENT_NORM).index(failure.what)))
    alike = [failure for failure in failures if (failure.step, failure.what) == (first.step, first.what)]
    rows = ", ".join(f"{row_id} ({source})" for failure in alike for row_id, source in failure.rows)
    if first.what == SCALE:
        return f"step {first.step + 1} has nothing to learn: every token's weight is 0\n{rows}"
    return (
        f"{first.what} is {first.value} at step {first.step + 1}: neither this step is taken nor one after it, and the last "
        f"checkpoint is as it was; look at these rows, or lower train.learning_rate: {rows}"
    )
