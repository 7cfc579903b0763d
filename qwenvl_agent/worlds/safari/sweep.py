"""Sweeping the zones of a world: which is next, where to stand to see it, and when it counts as seen.

Three ways to say where to stand. `centres`: in the middle of the zone, which is the shortest way, and takes sums of world
coordinates to know. `borders`: towards the world's border until the player's tile leaves the middle of the view, which
then shows the border's zones whole: whoever sees his own tile knows where to go and when he is there. Zones that touch no
border have their centres either way. `regions`: anywhere in a square of three tiles a side from the centre on, where
coordinates are only compared; at the world's border anywhere from where the player's tile is off the middle of the view,
which tells it without coordinates. The next zone is the nearest, or
without `centres` the next on the way to and fro through the rows, which the zone just seen tells alone.
"""

from dataclasses import replace

from qwenvl_agent.worlds.safari.notepad import Notes, zone_counts
from qwenvl_agent.worlds.safari.scene import Scene
from qwenvl_agent.worlds.safari.world import VIEW, SafariRules, Tile, view_corner, walk

SWEEP_SHIFTS = ((0, 0), (-2, -2), (2, 2), (2, -2), (-2, 2))
"""Where a sweep's waypoints stand from the zones' centres: later sweeps see the strips that the first one missed."""

WAYPOINTS = ("centres", "borders", "regions")
REGION = 3
"""Tiles along a side of the places from which a zone counts as seen, with `regions`. Who comes from above or from the
left stops where the view ends with the zone's last row or column."""


def zones_of(rules: SafariRules) -> list[Tile]:
    columns, rows = zone_counts(rules.width, rules.height)
    return [(x, y) for y in range(rows) for x in range(columns)]


def zones_to_and_fro(rules: SafariRules) -> list[Tile]:
    """Row by row, every other row from right to left."""
    return sorted(zones_of(rules), key=lambda zone: (zone[1], -zone[0] if zone[1] % 2 else zone[0]))


def with_next_zone(notes: Notes, position: Tile, rules: SafariRules, after: Tile | None = None) -> Notes:
    """A zone not yet swept becomes the one to go to: the nearest, or the next one to and fro `after` another; after the
    last one a new sweep begins."""
    zones = zones_of(rules)
    if len(notes.swept) >= len(zones):
        notes = replace(notes, swept=frozenset(), sweep=notes.sweep + 1)
    left = [zone for zone in zones if zone not in notes.swept]
    if after is not None:
        order = zones_to_and_fro(rules)
        start = order.index(after) + 1
        return replace(notes, go=next(zone for zone in order[start:] + order[:start] if zone in left))
    return replace(notes, go=min(left, key=lambda zone: walk(waypoint(zone, notes.sweep, rules), position)))


def waypoint(zone: Tile, sweep: int, rules: SafariRules) -> Tile:
    """The place from which a zone is seen whole, shifted in later sweeps."""
    dx, dy = SWEEP_SHIFTS[sweep % len(SWEEP_SHIFTS)]
    centre = (zone[0] * VIEW + VIEW // 2, zone[1] * VIEW + VIEW // 2)
    return min(centre[0] + dx, rules.width - 1), min(centre[1] + dy, rules.height - 1)


def zone_place(scene: Scene) -> Tile:
    """Where to stand to see the zone to go to."""
    assert scene.notes.go is not None
    centre = waypoint(scene.notes.go, scene.notes.sweep, scene.rules)
    if scene.waypoints != "borders":
        return centre
    size = (scene.rules.width, scene.rules.height)
    (x, y), (columns, rows) = scene.context.position, zone_counts(*size)
    return (
        _towards_border(scene.notes.go[0], columns, x, size[0], centre[0]),
        _towards_border(scene.notes.go[1], rows, y, size[1], centre[1]),
    )


def _towards_border(zone: int, num_zones: int, here: int, size: int, centre: int) -> int:
    """Along one axis: here if the player's tile is off the view's middle on the zone's side, else the border there."""
    if zone == 0:
        return here if here < VIEW // 2 else 0
    if zone == num_zones - 1:
        return here if here > size - VIEW // 2 else size - 1
    return centre


def region(scene: Scene) -> list[Tile]:
    """The places in the region that shows the zone to go to, as far as the player may stand there."""
    assert scene.notes.go is not None
    centre, rules = waypoint(scene.notes.go, scene.notes.sweep, scene.rules), scene.rules
    columns, rows = zone_counts(rules.width, rules.height)
    xs = _region_along(scene.notes.go[0], columns, rules.width, centre[0])
    ys = _region_along(scene.notes.go[1], rows, rules.height, centre[1])
    return [(x, y) for y in ys for x in xs if scene.is_standing_room((x, y))]


def _region_along(zone: int, num_zones: int, size: int, centre: int) -> range:
    """Along one axis; at the world's border where the player's tile is off the view's middle: the view then ends there."""
    if num_zones == 1:
        return range(size)
    if zone == 0:
        return range(VIEW // 2)
    if zone == num_zones - 1:
        return range(size - VIEW // 2 + 1, size)
    return range(centre, centre + REGION)


def waypoint_goals(scene: Scene) -> list[Tile]:
    """The waypoint of the zone to go to; if something stands on it the places around it, best those with its view."""
    if scene.waypoints == "regions" and (rooms := region(scene)):
        return rooms
    place = zone_place(scene)
    if scene.is_standing_room(place):
        return [place]
    around = [(place[0] + dx, place[1] + dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    rooms = [other for other in around if scene.is_standing_room(other)]
    return [room for room in rooms if _corner(scene, room) == _corner(scene, place)] or rooms


def is_swept(scene: Scene) -> bool:
    """Whether the zone to go to fills the view, or the player stands where its waypoint allows."""
    is_seen = scene.waypoints == "centres" and scene.corner == _corner(scene, zone_place(scene))
    return is_seen or scene.context.position in waypoint_goals(scene)


def _corner(scene: Scene, place: Tile) -> Tile:
    return view_corner(place, scene.rules.width, scene.rules.height)
