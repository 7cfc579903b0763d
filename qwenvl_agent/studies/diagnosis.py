"""Why episodes fail: whether thought and action are right, and the first error of an episode, for any world.

Everything rests on the reference policy's turn on the same observation, which a record holds (`expected`,
`expected_thought`). A turn is right if it comes to the same (`World.is_equivalent`); the reference is one good way, not
all of them, so that a first error is where an episode left that way, not proof of what lost it. What a world can tell
of its own thoughts and notes it tells by `World.announces` and `World.explain`.

| class | the first turn that is not right |
|---|---|
| format | could not be read, or names no tool, or breaks its schema |
| perception | its thought sees something else than the reference's does (where the world can tell) |
| planning | its thought announces another turn than the reference's |
| execution | its thought announces the right turn, its calls do another one |
| memory | it does the right thing and writes other notes, or none that were due (where the world can tell) |
| unexplained | it is wrong and its thought announces nothing that could be read, or there is none |

Classes that need a thought are never found where none is written: compare them between arms that write one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl_agent.evaluation.episodes import is_right
from qwenvl_agent.records import EpisodeRecord, StepRecord
from qwenvl_agent.worlds import World

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


def quadrant(world: World, step: StepRecord) -> str | None:
    """One of QUADRANTS; None where the thought announces nothing or there is no reference."""
    if step.expected is None:
        return None
    thought_right = world.announces(step.thought, step.expected)
    if thought_right is None:
        return None
    return QUADRANTS[2 * (not thought_right) + (not is_right(world, step))]


def quadrants(world: World, steps: Sequence[StepRecord]) -> dict[str, int]:
    """How many turns are in each quadrant, and `uncovered`: with a reference, but no thought that announces a turn."""
    counts = Counter(dict.fromkeys((*QUADRANTS, "uncovered"), 0))
    counts.update(quadrant(world, step) or "uncovered" for step in steps if step.expected is not None)
    return dict(counts)


def first_error(world: World, record: EpisodeRecord) -> FirstError | None:
    """None if no turn is wrong: lost by a time limit or a crash, or won."""
    for number, step in enumerate(record.steps, 1):
        found = error_of(world, step)
        if found:
            return FirstError(record.seed, number, *found)
    return None


def first_errors(world: World, records: Sequence[EpisodeRecord]) -> dict[str, int]:
    """Failed episodes by the class of their first error, `none` for those without one."""
    counts = Counter(dict.fromkeys((*CLASSES, "none"), 0))
    for record in records:
        if not record.success:
            error = first_error(world, record)
            counts[error.kind if error else "none"] += 1
    return dict(counts)


def error_of(world: World, step: StepRecord) -> tuple[str, str] | None:
    """(class, detail) of a turn; None if it is right or nothing tells."""
    if step.error:
        return "format", step.error
    unfit = [call.name for call in step.calls if not call.schema_ok]
    if unfit:
        return "format", f"{unfit[0]}: no such tool, or arguments that break its schema"
    if step.expected is None:
        return None
    right = is_right(world, step)
    told = world.explain(step, right)
    if told or right:
        return told
    return unexplained(world.announces(step.thought, step.expected), step)


def unexplained(announced: bool | None, step: StepRecord) -> tuple[str, str]:
    """Of a wrong turn about which its world tells no more than whether its thought announced the right one."""
    if announced is None:
        return "unexplained", "the thought announces nothing" if step.thought else "no thought"
    return ("execution", "another turn than announced") if announced else ("planning", "another turn than was due")
