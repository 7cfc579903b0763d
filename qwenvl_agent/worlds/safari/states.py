"""States that no oracle comes to by itself, for it to be recorded in: elsewhere, after a blocked walk, with other notes.

Half of an imitator's mistakes are made where its teacher never was (docs/LOG.md): beside a target that it may not yet
declare, before a tree that it took for ground, with notes that say something else than what is seen.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwenvl_agent.schema import ToolCall
from qwenvl_agent.settings import check_values
from qwenvl_agent.worlds.safari.env import SafariEnv, beside
from qwenvl_agent.worlds.safari.foreign_notes import NotesShares, Share, draw_notes, stale_notes
from qwenvl_agent.worlds.safari.notepad import read_notes
from qwenvl_agent.worlds.safari.world import DIRECTIONS, VIEW, Animal, Tile, in_view, view_corner, walk
from qwenvl_agent.worlds.world import DrawnState

NEAR = (1, 2, 2, 3)
"""Tiles to a target of a place that counts as near, each as likely. Every episode ends one tile before its last target, so
what looks like it and is not yet there has to be shown as often: two tiles away."""
ALMOST = 2
"""Tiles that the view may miss of a zone beside which a state is drawn."""
FIRST_TURN = 0.1
"""Share of states before the first turn."""
AFTER_BLOCK = 0.7
"""Of the others, share in which the walk before was blocked, where something blocks."""
PER_WALL = 2.0
"""A place is so much more likely for each wall beside it, as there one has to look how to get on."""
UNSEEN = 0.5
"""Share of trees that blocked and are then not shown: what is told has to be believed."""


@dataclass(frozen=True, kw_only=True)
class StateSettings:
    """What can be set of the drawn states (`record --state notes.stale=0.1`)."""

    notes: NotesShares = NotesShares()
    at_zone: Share = 0.0
    """Of the places that are not near a target, share of those from which the zone to go to is seen whole, or just not yet,
    and no target is. That a zone is seen is decided in a twentieth of an oracle's turns, and who misses it walks about."""

    def __post_init__(self):
        check_values(self, "states")


def draw_state(env: SafariEnv, rng: random.Random, near: float, settings: StateSettings) -> DrawnState:
    """Another state of the world and the mission that `env` is in; `near` is the share of states near a target."""
    place, kind = draw_place(env, rng, near)
    notepad, notes_kind = draw_notes(settings.notes, env.notepad, env.rules, env.wanted(), rng)
    if kind == "anywhere" and settings.at_zone and rng.random() < settings.at_zone:
        place, kind, notepad, notes_kind = draw_at_zone(env, rng, notepad, notes_kind) or (
            place,
            kind,
            notepad,
            notes_kind,
        )
    options: dict = {
        "player": place,
        "notepad": notepad,
        "found": [env.mission.targets.index(animal) for animal in env.found],
        "gone": list(env.gone),
    }
    if kind != "at_zone" and rng.random() < FIRST_TURN and not env.found:
        return DrawnState(options, (kind, notes_kind, "first_turn"))
    calls, start, calls_kind = draw_calls(env, rng, place)
    options |= {"player": start, "calls": calls, "turn": max(env.turn, 1)}
    if calls_kind == "blocked":
        wall = beside(place, calls[0].arguments["actions"][-1]["direction"])
        if env.rules.tell_last and wall in env.world.trees and rng.random() < UNSEEN:
            return DrawnState(options | {"unseen": [wall]}, (kind, notes_kind, calls_kind, "unseen_tree"))
    return DrawnState(options, (kind, notes_kind, calls_kind))


def draw_place(env: SafariEnv, rng: random.Random, near: float) -> tuple[Tile, str]:
    """A place to stand on and whether it is near a target."""
    places = [(x, y) for y in range(env.rules.height) for x in range(env.rules.width) if not env.is_blocked((x, y))]
    weights = {place: 1 + PER_WALL * len(walls_beside(env, place)) for place in places}

    def draw(among: list[Tile]) -> Tile:
        return rng.choices(among, [weights[place] for place in among])[0]

    if rng.random() < near:
        goals = [place for place, animal in env.world.animals.items() if animal in current_targets(env)]
        rings = [[p for p in places if min(walk(p, goal) for goal in goals) == d] for d in NEAR]
        rings = [ring for ring in rings if ring]
        if rings:
            return draw(rng.choice(rings)), "near"
    return draw(places), "anywhere"


def draw_at_zone(
    env: SafariEnv, rng: random.Random, notepad: str, notes_kind: str
) -> tuple[Tile, str, str, str] | None:
    """A place at the zone that the notepad goes to, or another notepad's, its kind, the notepad and its kind; None if
    targets are seen from all such places."""
    notes = read_notes(notepad, env.rules.width, env.rules.height)
    if notes is None or notes.go is None:
        notepad, notes_kind = stale_notes(env.rules, env.wanted(), rng), "stale_notes"
        notes = read_notes(notepad, env.rules.width, env.rules.height)
    assert notes is not None and notes.go is not None, notepad
    places = places_at(env, notes.go)
    return (rng.choice(places), "at_zone", notepad, notes_kind) if places else None


def places_at(env: SafariEnv, zone: Tile) -> list[Tile]:
    """Places from which a zone is seen whole, or almost, and no target is."""
    rules = env.rules
    # The view stops at the border: it shows a last zone that is cut off from further inside.
    corner = tuple(min(VIEW * i, size - VIEW) for i, size in zip(zone, (rules.width, rules.height), strict=True))
    goals = [place for place, animal in env.world.animals.items() if animal in current_targets(env)]
    places = []
    for place in ((x, y) for y in range(rules.height) for x in range(rules.width) if not env.is_blocked((x, y))):
        shown = view_corner(place, rules.width, rules.height)
        is_at = max(abs(a - b) for a, b in zip(shown, corner, strict=True)) <= ALMOST
        if is_at and not any(in_view(goal, shown) for goal in goals):
            places.append(place)
    return places


def walls_beside(env: SafariEnv, place: Tile) -> list[str]:
    """The directions in which something blocks."""
    return [direction for direction in DIRECTIONS if env.is_blocked(beside(place, direction))]


def current_targets(env: SafariEnv) -> Sequence[Animal]:
    return env.wanted()[:1] if env.mission.ordered else env.wanted()


def draw_calls(env: SafariEnv, rng: random.Random, place: Tile) -> tuple[list[ToolCall], Tile, str]:
    """A walk that ends on `place`, where it begins, and its kind: blocked there, or as far as it was meant to go."""
    walls = walls_beside(env, place)
    runs = [(direction, start, steps) for direction in DIRECTIONS for start, steps in runs_to(env, place, direction)]
    if walls and rng.random() < AFTER_BLOCK:
        direction = rng.choice(walls)
        before = [(start, steps) for other, start, steps in runs if other != direction and rng.random() < 0.5]
        start, steps = rng.choice(before) if before else (place, 0)
        return [move_to(start, place, steps, (direction, rng.randint(1, 2)))], start, "blocked"
    if not runs:
        return [], place, "no_calls"
    _, start, steps = rng.choice(runs)
    return [move_to(start, place, steps)], start, "walked"


def runs_to(env: SafariEnv, place: Tile, direction: str) -> Iterator[tuple[Tile, int]]:
    """Where straight walks of 1 to 3 tiles to `place` begin."""
    dx, dy = DIRECTIONS[direction]
    for steps in (1, 2, 3):
        start = (place[0] - steps * dx, place[1] - steps * dy)
        if env.is_blocked(start):
            return
        yield start, steps


def move_to(start: Tile, place: Tile, steps: int, *more: tuple[str, int]) -> ToolCall:
    """A straight walk from one place to another, and more."""
    walked = [
        (d, steps) for d, (dx, dy) in DIRECTIONS.items() if (start[0] + steps * dx, start[1] + steps * dy) == place
    ]
    actions = [*(walked if steps else []), *more]
    return ToolCall("move", {"actions": [{"direction": direction, "steps": count} for direction, count in actions]})
