"""Judging recorded calls and thoughts, from what a record holds: names, arguments, results."""

import re
from collections.abc import Sequence

from qwenvl_agent.worlds.safari.thoughts import Plan
from qwenvl_agent.worlds.safari.world import DIRECTIONS

PLAN = re.compile(r"\bPlan ")
_MOVE = rf"(?:{'|'.join(DIRECTIONS)}) [0-9]{{1,3}}"
MOVES = re.compile(rf"{_MOVE}(?: {_MOVE})*")

REFUSALS = {"move": "blocked", "catch": "nothing there", "declare_found": "false", "declare_done": "too early"}
"""What it means that the state refused a call."""


def is_refused(name: str, result: dict, effective: bool) -> bool:
    """Whether the state refused a call that its schema allows: a walk into a tree, an empty catch, a false claim."""
    if name == "move":
        return bool(result.get("blocked"))
    return name != "update_notepad" and not effective


def is_equivalent(calls: Sequence[dict], best: Sequence[dict]) -> bool:
    """Whether two turns end on the same tile and do the same there; notes, and the way walked, may differ."""
    return effect(calls) == effect(best)


def effect(calls: Sequence[dict]) -> tuple[int, int, list[dict]]:
    """(dx, dy) of the moves, and the calls besides moves and notes."""
    actions = [action for call in calls if call["name"] == "move" for action in move_actions(call)]
    dx = sum(DIRECTIONS[direction][0] * steps for direction, steps in actions)
    dy = sum(DIRECTIONS[direction][1] * steps for direction, steps in actions)
    return dx, dy, [call for call in calls if call["name"] not in ("move", "update_notepad")]


def move_actions(call: dict) -> list[tuple[str, int]]:
    """(direction, steps) of a move; one that does not fit the schema does nothing."""
    try:
        actions = [(str(action["direction"]), int(action["steps"])) for action in call["arguments"]["actions"]]
    except (KeyError, TypeError, ValueError):
        return []
    return [action for action in actions if action[0] in DIRECTIONS]


def planned(thought: str) -> Plan | None:
    """The plan that a thought ends with, None if it has none in the fixed form: `Plan RIGHT 2 UP 1, found, done.`"""
    sentence = thought.rstrip().removesuffix(".").rpartition(".")[2]
    match = PLAN.search(sentence)
    if match is None:
        return None
    moves: tuple[tuple[str, int], ...] = ()
    catch, others = "", []
    for part in sentence[match.end() :].split(", "):
        if MOVES.fullmatch(part):
            words = part.split()
            moves = tuple(zip(words[::2], map(int, words[1::2]), strict=True))
        elif part.startswith("catch "):
            catch = part.removeprefix("catch ")
        elif part in ("found", "done", "wait"):
            others.append(part)
        else:
            return None
    return Plan(moves, catch, found="found" in others, done="done" in others)


def plan_of(calls: Sequence[dict]) -> Plan:
    """What a turn's calls do, as a plan."""
    names = [call["name"] for call in calls]
    moves = tuple(action for call in calls if call["name"] == "move" for action in move_actions(call))
    catches = [str(call["arguments"].get("direction")) for call in calls if call["name"] == "catch"]
    return Plan(moves, " ".join(catches), found="declare_found" in names, done="declare_done" in names)


def agrees(thought: str, calls: Sequence[dict]) -> bool | None:
    """Whether a turn does what its thought announces; None if the thought announces nothing."""
    plan = planned(thought)
    return None if plan is None else plan == plan_of(calls)
