"""Ways to places out of view: what is not seen counts as free, and what must not be forgotten is found out.

All coordinates are places, (x, y) in the world.
"""

from collections.abc import Sequence, Set

from qwenvl_agent.worlds.safari.scene import Scene
from qwenvl_agent.worlds.safari.world import DIRECTIONS, FAR, VIEW, Tile, distances, in_view, walk

MAX_WALLS = 24
"""Blocked places remembered on the way to one waypoint before it is given up."""
DETOUR = 4
"""Steps that known walls add to the straight way before the way back is remembered as well."""

Field = dict[Tile, int]
"""Steps to the nearest goal, at least for every place of a view that can be reached."""


def field_to(goals: Sequence[Tile], walls: Set[Tile], corner: Tile, size: Tile, *others: Tile) -> Field:
    """The field round known walls for the view at `corner` and `others`, in a world of `size`."""
    shown = {(corner[0] + column, corner[1] + row) for row in range(VIEW) for column in range(VIEW)}
    blocked = walls - set(goals)
    return distances(goals, blocked, *size, until=(shown | {*others}) - blocked)


def best_place(me: Tile, walls: Set[Tile], avoided: Set[Tile], corner: Tile, field: Field) -> Tile | None:
    """The place in view on a shortest way to the field's goals, as far along it as the view shows.

    `avoided` places are walked over but not stopped on. None if no way leads anywhere.
    """
    blocked = [(x - corner[0], y - corner[1]) for x, y in walls if in_view((x, y), corner)]
    steps = distances([(me[0] - corner[0], me[1] - corner[1])], blocked, VIEW, VIEW)
    ways = []
    for (column, row), walked in steps.items():
        place = (column + corner[0], row + corner[1])
        if place in field and place not in avoided and place != me:
            ways.append((walked + field[place], field[place], row, column, place))
    return min(ways)[-1] if ways else None


def walls_to_remember(scene: Scene, end: Tile, goals: Sequence[Tile], field: Field) -> list[Tile]:
    """Walls that leave the view with this turn's walk to the place `end` and that a later turn would head into.

    Without them the place that the next turn would walk to, or this one after a long detour, would look nearer to the
    goals than it is known to be: the player would come back for it and circle.
    """
    size = (scene.rules.width, scene.rules.height)
    corner, start = scene.corner_at(scene.tile(end)), scene.context.position
    is_detour = field[start] >= min(walk(start, goal) for goal in goals) + DETOUR
    kept = {place for place in scene.walls if in_view(place, corner)} | set(scene.notes.walls)
    added: list[Tile] = []
    while len(added) < MAX_WALLS:
        forgetful = field_to(goals, kept, corner, size, start)
        watched = [best_place(end, kept, set(), corner, forgetful), start if is_detour else None]
        misjudged = [place for place in watched if place and forgetful[place] < field.get(place, FAR)]
        hit = next((w for place in misjudged if (w := first_wall(place, forgetful, scene.walls - kept))), None)
        if hit is None:
            break
        added.append(hit)
        kept.add(hit)
    return added


def first_wall(place: Tile, field: Field, walls: Set[Tile]) -> Tile | None:
    """The first of `walls` on the way down a field from `place`."""
    while field[place] > 0:
        ahead = [(place[0] + dx, place[1] + dy) for dx, dy in DIRECTIONS.values()]
        place = min((other for other in ahead if other in field), key=lambda other: (field[other], other not in walls))
        if place in walls:
            return place
    return None
