"""What the steps of a run find. It stays on the device until a step logs or saves; see finite.py for what that means."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from qwenvl_agent.training.finite import FiniteCheck
from qwenvl_agent.training.gradients import GradientCheck
from qwenvl_agent.training.metrics import Means


@dataclass
class Findings:
    """Means to report, values that must be finite, and gradients that must be there."""

    means: Means
    finite: FiniteCheck
    gradients: GradientCheck
    _before: tuple[Means, dict[str, int]] = field(init=False, repr=False)
    """Means and counts before a step that may be skipped."""

    def begin(self, scale: torch.Tensor, step: int, micro_batches: Sequence[dict]) -> None:
        """A step begins, whose losses are multiplied by `scale`."""
        if self.finite.skips:
            self._before = self.means.copy(), dict(self.gradients.num_steps)
        self.finite.begin(scale, step, micro_batches)

    def read(self) -> None:
        """Wait for the device; an error, if a step since the last call was not as it has to be. All ranks must call this.

        A step that is skipped leaves nothing in the means but that it was (`train/skipped_step_rate`, a share of steps).
        """
        is_skipped = self.finite.read()
        if is_skipped:
            self.means, self.gradients.num_steps = self._before
            self.gradients.unread = []
        if self.finite.skips:
            self.means.add("train/skipped_step_rate", float(is_skipped), 1.0)
        self.gradients.read()
