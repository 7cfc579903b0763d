"""What the steps of a run find. It stays on the device until a step logs or saves; see finite.py for what that means."""

from dataclasses import dataclass

from qwenvl_agent.training.finite import FiniteCheck
from qwenvl_agent.training.gradients import GradientCheck
from qwenvl_agent.training.metrics import Means


@dataclass
class Findings:
    """Means to report, values that must be finite, and gradients that must be there."""

    means: Means
    finite: FiniteCheck
    gradients: GradientCheck

    def read(self) -> None:
        """Wait for the device; an error, if a step since the last call was not as it has to be. All ranks must call this."""
        self.finite.read()
        self.gradients.read()
