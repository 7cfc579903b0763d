"""What a turn got wrong, as far as the safari's thoughts tell: the tile that was seen, the plan, the notes.

Everything is held against the reference's turn on the same observation: it saw the agent's own notepad, so an earlier
mistake is not counted again at a later turn.
"""

from collections.abc import Sequence

from qwenvl_agent.records import StepRecord, split_thought
from qwenvl_agent.worlds.safari.judge import plan_of, planned
from qwenvl_agent.worlds.safari.thoughts import Plan
from qwenvl_agent.worlds.safari.world import DIRECTIONS

SEEN_FIELDS = ("Me", "At", "Target")
"""Of a thought: what the picture shows. The rest of it is drawn from these."""


def announces(thought: str, calls: Sequence[dict]) -> bool | None:
    """Whether a thought's plan ends where these calls end and does the same there; None without a plan."""
    plan = planned(thought)
    return None if plan is None else plan_effect(plan) == plan_effect(plan_of(calls))


def plan_effect(plan: Plan) -> tuple:
    """Where a plan ends and what it does there, however it walks."""
    dx = sum(DIRECTIONS[direction][0] * steps for direction, steps in plan.moves)
    dy = sum(DIRECTIONS[direction][1] * steps for direction, steps in plan.moves)
    return dx, dy, plan.catch, plan.found, plan.done


def explain(step: StepRecord, is_right: bool) -> tuple[str, str] | None:
    """(class, detail) of a turn with a reference: notes of a right one, and what a wrong one saw, planned and did."""
    if is_right:
        return note_error(step)
    seen = seen_wrong(step)
    if seen:
        return "perception", seen
    plan = planned(step.thought)
    if plan is None:
        return None
    if plan_effect(plan) == plan_effect(plan_of(step.expected)):
        return "execution", f"planned {plan.text()}, did {plan_of([c.as_json() for c in step.calls]).text()}"
    return "planning", f"planned {plan.text()}, due was {plan_of(step.expected).text()}"


def note_error(step: StepRecord) -> tuple[str, str] | None:
    """Notes that differ from the reference's: other words, none where some were due, or some where none were."""
    made, due = notes_of([call.as_json() for call in step.calls]), notes_of(step.expected)
    if made == due:
        return None
    return "memory", "notes were due" if made is None else "no notes were due" if due is None else "other notes"


def notes_of(calls: Sequence[dict]) -> str | None:
    """What a turn leaves in the notepad, spaces aside; None if it does not write there."""
    texts = [str(call["arguments"].get("content", "")) for call in calls if call["name"] == "update_notepad"]
    return "\n".join(" ".join(line.split()) for line in texts[-1].strip().split("\n")) if texts else None


def seen_wrong(step: StepRecord) -> str:
    """The first field of what is seen that differs from the reference's thought; "" if none does, or none is told."""
    got, expected = split_thought(step.thought), split_thought(step.expected_thought)
    for name in SEEN_FIELDS:
        if name in got and name in expected and got[name] != expected[name]:
            return f"{name} {got[name]}, due was {name} {expected[name]}"
    return ""
