"""A step whose loss or gradient is not finite, or whose loss spikes, is not taken; it is named, and the run stops or goes on.

To look at each loss on the host would stop a GPU at each. So the device keeps a flag: from the first bad value on
`optimizer.step()` changes nothing, neither weights nor averages. Values and rows are kept until `read`, which every logged
and every saved step calls on all ranks before anything is written. So a checkpoint and a log line are never of such a step
or of one after it. What is lost is the time of the steps until then, at most train.log_every of them.

With train.on_bad_step=skip the flag is of one step, and every step is read: it waits for the device.

The 8-bit AdamW (train.optimizer) waits for the device after each parameter and so looks at the flag on the host, before
every step.

DeepSpeed steps inside `backward` and looks at the gradient norm itself, on the host: it skips such a step, and its norm is
a float here, so that the run ends at once.

A loss spikes if a micro-batch's mean is over train.spike_factor times that of the micro-batches before it on the same rank:
a running mean on the device, of which spikes are no part, and which checkpoints keep.
"""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from qwenvl_agent.config import TrainConfig

SCALE, LOSS, SPIKE, GRADIENT_NORM = "scale", "loss", "mean loss", "gradient norm"
MEMORY, FIRST_LIMITED = 50, 10
"""Micro-batches that the running mean of the loss is of, and those before it limits anything."""
MOST_IN_A_ROW = 10
"""Steps that may be skipped one after the other."""


class Seen(NamedTuple):
    """One value of a step, and the rows it is of; a `Failure` once it is a float that is not finite."""

    step: int
    what: str
    value: torch.Tensor | float
    rows: tuple[tuple[str, str], ...]
    """Id and file:line of each."""
    limit: torch.Tensor | float = math.inf
    """Of a mean loss: above it, it spikes."""

    @property
    def is_bad(self) -> bool:
        return not math.isfinite(self.value) or self.value > self.limit


class FiniteCheck:
    """Sees the values of each step on their device, keeps `optimizer` from steps, and reads them when it is told to."""

    def __init__(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer, cfg: TrainConfig | None = None):
        cfg = cfg or TrainConfig()
        self.accelerator, self.skips, self.spike_factor = accelerator, cfg.on_bad_step == "skip", cfg.spike_factor
        self.failed = torch.zeros((), device=accelerator.device)
        self.seen: list[Seen] = []
        self.in_a_row = 0
        """Steps skipped since the last one that was taken."""
        self.usual = torch.zeros(2, device=accelerator.device, dtype=torch.float64) if self.spike_factor else None
        """The running mean of the loss, and the micro-batches that it is of."""
        # AdamW, fused or in 8 bits, takes no step where this is 1; it is what torch's GradScaler sets. Not of Accelerate's
        # wrapper.
        getattr(optimizer, "optimizer", optimizer).found_inf = self.failed

    def begin(self, scale: torch.Tensor, step: int, micro_batches: Sequence[dict]) -> None:
        """A step of which `scale` is the factor of its losses: infinite, if none of its tokens weighs anything."""
        if self.skips:
            self.failed.zero_()
        self.see(SCALE, scale, step, micro_batches)

    def see(self, what: str, value: torch.Tensor | float, step: int, micro_batches: Sequence[dict]) -> None:
        """`value` is () and stays where it is; a float that is not finite is a ValueError at once, unless it is skipped."""
        if isinstance(value, torch.Tensor):
            value = value.detach()
            self.failed.masked_fill_(~torch.isfinite(value), 1.0)
        elif math.isfinite(value):
            return
        self.seen.append(Seen(step, what, value, rows_of(micro_batches)))
        if not isinstance(value, torch.Tensor) and not self.skips:
            self.read()

    def see_loss(self, loss: torch.Tensor, weighted_sum: torch.Tensor, step: int, batch: dict) -> torch.Tensor:
        """The micro-batch's `loss` for backward, spoiled where it is bad; `weighted_sum` is that of its tokens' losses."""
        self.see(LOSS, loss, step, [batch])
        if self.usual is None or not batch["loss_weight"]:
            return spoiled(loss)
        mean = weighted_sum.detach().double() / batch["loss_weight"]
        usual, number = self.usual
        limit = torch.where(number >= FIRST_LIMITED, self.spike_factor * usual, math.inf)
        is_usual = torch.isfinite(mean) & (mean <= limit)
        self.failed.masked_fill_(mean > limit, 1.0)
        self.seen.append(Seen(step, SPIKE, mean, rows_of([batch]), limit))
        number = number + is_usual
        share = torch.clamp(1 / number.clamp(min=1), min=1 / MEMORY)
        self.usual = torch.stack([torch.where(is_usual, usual + share * (mean - usual), usual), number])
        return spoiled(loss) * torch.where(mean > limit, math.nan, 1.0).to(loss.dtype)

    def read(self) -> bool:
        """Whether a bad step was skipped; where none is to be, a ValueError of it, the same on all ranks, which must all
        call this."""
        seen, self.seen = self.seen, []
        numbers = self._on_host([*(one.value for one in seen), *(one.limit for one in seen)])
        pairs = zip(seen, numbers[: len(seen)], numbers[len(seen) :], strict=True)
        read = [one._replace(value=value, limit=limit) for one, value, limit in pairs]
        failures = gather_object([one for one in read if one.is_bad][:1])
        if not failures:
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        if not self.skips or self.in_a_row >= MOST_IN_A_ROW:
            raise ValueError(describe(failures, self.in_a_row if self.skips else 0))
        if self.accelerator.is_main_process:
            print(f"warning: {describe_skipped(failures)}", file=sys.stderr, flush=True)
        return True

    def _on_host(self, values: Sequence[torch.Tensor | float]) -> list[float]:
        # Of one dtype and on one device, which most are already; one wait for all.
        alike = [torch.as_tensor(value, dtype=torch.float32, device=self.failed.device) for value in values]
        return torch.stack(alike).tolist() if alike else []

    def state_dict(self) -> dict:
        """JSON values; empty where nothing is kept from step to step."""
        kept = {"usual": self.usual.tolist()} if self.usual is not None else {}
        return kept | ({"in_a_row": self.in_a_row} if self.skips else {})

    def load_state_dict(self, state: dict) -> None:
        self.in_a_row = state.get("in_a_row", 0)
        if self.usual is not None and "usual" in state:
            self.usual = torch.tensor(state["usual"], device=self.usual.device, dtype=torch.float64)


def rows_of(micro_batches: Sequence[dict]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for b in micro_batches for pair in zip(b["row_ids"], b["sources"], strict=True))


def spoiled(loss: torch.Tensor) -> torch.Tensor:
    """The loss; where it is not finite, with a gradient that is not finite either, so that no rank takes the step.

    (An infinite loss can have a finite gradient.)
    """
    return loss * (1 + 0 * loss.detach())


def describe(failures: Sequence[Seen], num_skipped: int = 0) -> str:
    """Why the run ends, after `num_skipped` steps in a row that were skipped."""
    first, rows = earliest(failures)
    if num_skipped:
        return (
            f"{num_skipped} steps in a row were skipped, the last because {cause(first)}: the weights are no longer fit to go on, "
            f"or train.spike_factor is too low; look at the rows, or lower train.learning_rate: {rows}"
        )
    if first.what == SCALE:
        return f"step {first.step + 1} has nothing to learn: every token's weight is 0\n{rows}"
    return (
        f"{cause(first)}: neither this step is taken nor one after it, and the last checkpoint is as it was; look at these "
        f"rows, or lower train.learning_rate (train.on_bad_step=skip leaves out such steps): {rows}"
    )


def describe_skipped(failures: Sequence[Seen]) -> str:
    first, rows = earliest(failures)
    return f"{cause(first)}: the step is skipped, nothing is learned from its rows: {rows}"


def earliest(failures: Sequence[Seen]) -> tuple[Seen, str]:
    """The one of the earliest step, its loss, of which the rows are known, before the norm, which is all ranks'; its rows."""
    order = (SCALE, LOSS, SPIKE, GRADIENT_NORM)
    first = min(failures, key=lambda failure: (failure.step, order.index(failure.what)))
    alike = [failure for failure in failures if (failure.step, failure.what) == (first.step, first.what)]
    return first, ", ".join(f"{row_id} ({source})" for failure in alike for row_id, source in failure.rows)


def cause(seen: Seen) -> str:
    if seen.what == SCALE:
        return f"every token's weight is 0 at step {seen.step + 1}"
    spike = f", over {seen.limit:.4g} (train.spike_factor times the usual)" if seen.what == SPIKE else ""
    return f"{seen.what} is {seen.value:.6g} at step {seen.step + 1}{spike}"
