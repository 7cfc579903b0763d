"""What a reader of any source file yields: one SourceRow a step, or a Reject that says why there is none."""

from dataclasses import dataclass

from qwenvl_agent.json_input import Reject
from qwenvl_agent.schema import Step, Tool

__all__ = ["Reject", "SourceRow"]


@dataclass(frozen=True)
class SourceRow:
    """One step of an episode; `source` is `file:line`.

    Rows with the same `split_key` stay on one side of the split. `notes` names what the reader changed or left out
    without losing the row; each is counted in the report.
    """

    episode_id: str
    turn_index: int
    split_key: str
    system_prompt: str
    tools: tuple[Tool, ...]
    step: Step
    source: str
    weight: float = 1.0
    notes: tuple[str, ...] = ()
