"""Ways through a view, and the moves they are walked with. Tiles are (column, row) of the view here."""

from collections.abc import Sequence, Set

from qwenvl_agent.worlds.safari.tools import MAX_ACTIONS, MAX_STEPS
from qwenvl_agent.worlds.safari.world import DIRECTIONS, VIEW, Tile, distances

Action = tuple[str, int]
"""Direction and steps of one action of a move."""


def shortest_way(start: Tile, goal: Tile, blocked: Set[Tile]) -> list[Tile] | None:
    """Tiles after `start` up to `goal`, staying in the view; None if there is no way.

    Of the shortest ways the one with the fewest turns, of those the one that tries `DIRECTIONS` in order. The goal may
    be blocked itself: it ends the way.
    """
    steps = distances([goal], blocked - {goal}, VIEW, VIEW)
    if start not in steps:
        return None
    runs = _fewest_runs(goal, steps, steps[start])
    way, here, heading = [], start, ""
    while here != goal:
        heading = min(runs[here], key=lambda direction: runs[here][direction] + (direction != heading))
        here = _ahead(here, heading)
        way.append(here)
    return way


def _fewest_runs(goal: Tile, steps: dict[Tile, int], limit: int) -> dict[Tile, dict[str, int]]:
    """For every tile at most `limit` steps away and every first direction on a shortest way: how many runs it takes."""
    runs: dict[Tile, dict[str, int]] = {}
    for tile in sorted(steps, key=steps.__getitem__):
        if not 0 < steps[tile] <= limit:
            continue
        runs[tile] = {}
        for direction in DIRECTIONS:
            ahead = _ahead(tile, direction)
            if steps.get(ahead, -1) == steps[tile] - 1:
                onward = [count + (turn != direction) for turn, count in runs[ahead].items()] if ahead != goal else [1]
                runs[tile][direction] = min(onward)
    return runs


def _ahead(tile: Tile, direction: str) -> Tile:
    dx, dy = DIRECTIONS[direction]
    return tile[0] + dx, tile[1] + dy


def straight_ways(start: Tile, goal: Tile) -> list[tuple[Tile, ...]]:
    """The ways of at most one bend, whatever stands on them: along the row first, and along the column first."""
    (x, y), (to_x, to_y) = start, goal
    row, column = [(i, y) for i in _between(x, to_x)], [(x, j) for j in _between(y, to_y)]
    by_row = (*row, *((to_x, j) for j in _between(y, to_y)))
    by_column = (*column, *((i, to_y) for i in _between(x, to_x)))
    return [by_row, by_column]


def _between(here: int, there: int) -> range:
    """From the one after `here` up to `there`."""
    return range(here + 1, there + 1) if there > here else range(here - 1, there - 1, -1)


def upto_first(way: tuple[Tile, ...], blocked: Set[Tile]) -> tuple[Tile, ...]:
    """The way up to its first blocked tile and with it; empty if nothing blocks."""
    return next((way[: i + 1] for i, tile in enumerate(way) if tile in blocked), ())


def direction_between(tile: Tile, ahead: Tile) -> str:
    """The direction from a tile to its neighbour."""
    return next(direction for direction in DIRECTIONS if _ahead(tile, direction) == ahead)


def directions_of(start: Tile, way: Sequence[Tile]) -> list[str]:
    return [direction_between(a, b) for a, b in zip([start, *way], way, strict=False)]


def actions_of(start: Tile, way: Sequence[Tile]) -> list[Action]:
    """The way as runs of at most 3 steps."""
    actions: list[Action] = []
    for direction in directions_of(start, way):
        if actions and actions[-1][0] == direction and actions[-1][1] < MAX_STEPS:
            actions[-1] = (direction, actions[-1][1] + 1)
        else:
            actions.append((direction, 1))
    return actions


def first_part(start: Tile, way: Sequence[Tile], max_tiles: int) -> list[Tile]:
    """As much of the way as one move can walk, at most `max_tiles`."""
    length = min(len(way), max_tiles)
    while len(actions_of(start, way[:length])) > MAX_ACTIONS:
        length -= 1
    return list(way[:length])


def last_run(start: Tile, way: Sequence[Tile]) -> int:
    """Tiles in the way's last straight run."""
    directions = directions_of(start, way)
    return next((i for i, d in enumerate(reversed(directions)) if d != directions[-1]), len(directions))
