"""What explains a failure, from records alone: where thought and action part, and the first error of an episode.

Everything rests on the reference policy's turn on the same observation, which a record holds (`expected`,
`expected_thought`): it saw the agent's own notepad, so an earlier mistake is not counted again at a later turn. A turn is
right if it ends where the reference's ends and does the same there (`judge.is_equivalent`); the reference is one good
way, not all of them, so that a first error is where an episode left that way, not proof of what lost it.

| class | the first turn that is not right |
|---|---|
| format | could not be read, or names no tool, or breaks its schema |
| perception | its thought says another own tile or another target tile than the reference's |
| planning | its thought sees what the reference sees and plans another turn |
| execution | its thought plans the right turn, its calls do another one |
| memory | it does the right thing and writes other notes, or none that were due |
| unexplained | it is wrong and its thought has no form that could be read, or there is none |

Classes that need a thought are never found where none is written: compare them between arms that write one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl_agent.evaluation.step_metrics import split_thought
from qwenvl_agent.records import EpisodeRecord, StepRecord
from qwenvl_agent.worlds.safari.judge import is_equivalent, plan_of, planned
from qwenvl_agent.worlds.safari.thoughts import Plan
from qwenvl_agent.worlds.safari.world import DIRECTIONS

SEEN_FIELDS = ("Me", "At", "Target")
"""Of a thought: what the picture shows. The rest of it is drawn from these."""
QUADRANTS = ("both_right", "execution_gap", "reasoning_gap", "both_wrong")
"""Thought and action: right and right; right and wrong; wrong and right; wrong and wrong (arXiv 2510.02204)."""
CLASSES = ("format", "perception", "planning", "execution", "memory", "unexplained")


@dataclass(frozen=True)
class FirstError:
    """Where an episode first went wrong; `turn` counts from 1."""

    seed: int
    turn: int
    kind: str
    """One of CLASSES."""
    detail: str
    """The parser's error, or what differs."""


def quadrant(step: StepRecord) -> str | None:
    """One of QUADRANTS; None where the thought announces nothing or there is no reference."""
    plan = planned(step.thought)
    if plan is None or step.expected is None:
        return None
    thought_right = plan_effect(plan) == plan_effect(plan_of(step.expected))
    action_right = is_right(step)
    return QUADRANTS[2 * (not thought_right) + (not action_right)]


def quadrants(steps: Sequence[StepRecord]) -> dict[str, int]:
    """How many turns are in each quadrant, and `uncovered`: with a reference, but no thought that announces a turn."""
    counts = Counter(dict.fromkeys((*QUADRANTS, "uncovered"), 0))
    counts.update(quadrant(step) or "uncovered" for step in steps if step.expected is not None)
    return dict(counts)


def first_error(record: EpisodeRecord) -> FirstError | None:
    """None if no turn is wrong: lost by a time limit or a crash, or won."""
    for number, step in enumerate(record.steps, 1):
        found = error_of(step)
        if found:
            return FirstError(record.seed, number, *found)
    return None


def first_errors(records: Sequence[EpisodeRecord]) -> dict[str, int]:
    """Failed episodes by the class of their first error, `none` for those without one."""
    counts = Counter(dict.fromkeys((*CLASSES, "none"), 0))
    for record in records:
        if not record.success:
            error = first_error(record)
            counts[error.kind if error else "none"] += 1
    return dict(counts)


def error_of(step: StepRecord) -> tuple[str, str] | None:
    """(class, detail) of a turn; None if it is right or nothing tells."""
    if step.error:
        return "format", step.error
    unfit = [call.name for call in step.calls if not call.schema_ok]
    if unfit:
        return "format", f"{unfit[0]}: no such tool, or arguments that break its schema"
    if step.expected is None:
        return None
    if is_right(step):
        return note_error(step)
    seen = seen_wrong(step)
    if seen:
        return "perception", seen
    plan = planned(step.thought)
    if plan is None:
        return "unexplained", "the thought announces nothing" if step.thought else "no thought"
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


def is_right(step: StepRecord) -> bool:
    """Read, allowed, and equivalent to the reference's turn."""
    if step.error or not all(call.schema_ok and call.legal is not False for call in step.calls):
        return False
    return is_equivalent([call.as_json() for call in step.calls], step.expected)


def plan_effect(plan: Plan) -> tuple:
    """Where a plan ends and what it does there, however it walks."""
    dx = sum(DIRECTIONS[direction][0] * steps for direction, steps in plan.moves)
    dy = sum(DIRECTIONS[direction][1] * steps for direction, steps in plan.moves)
    return dx, dy, plan.catch, plan.found, plan.done
