"""The safari oracle: a policy that solves every shipped suite from what the agent sees, the picture and the context.

It keeps no state: all it knows of earlier turns stands in the notepad. In view it walks shortest ways; out of view it
sweeps the zones, taking every tile it does not see for free. What it would forget and then walk into again is written
down, so it does not circle behind trees.

Coordinates: `place`s are (x, y) in the world, `tile`s (column, row) in the view.
"""

import hashlib
import random
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from qwenvl_agent.envs.safari.context import Context, read_context
from qwenvl_agent.envs.safari.missions import Mission, find_targets, read_mission
from qwenvl_agent.envs.safari.notepad import Notes, read_notes, tile_name, write_notes, zone_counts
from qwenvl_agent.envs.safari.paths import (
    actions_of,
    direction_between,
    first_part,
    last_run,
    shortest_way,
)
from qwenvl_agent.envs.safari.render import TREE, player_colour, read_view, symbol_animal
from qwenvl_agent.envs.safari.thoughts import THOUGHT_FORMS, Plan, Reasons, write_thought
from qwenvl_agent.envs.safari.tools import MAX_ACTIONS, MAX_STEPS
from qwenvl_agent.envs.safari.world import (
    DIRECTIONS,
    VIEW,
    Animal,
    SafariRules,
    Tile,
    distances,
    in_view,
    view_corner,
    walk,
)
from qwenvl_agent.schema import Answer, Request, ToolCall, Turn

SWEEP_SHIFTS = (0, -2, 2)
"""Where a sweep's waypoints stand from the zones' centres: later sweeps see the strips that the first one missed."""
MAX_WALLS = 24
"""Blocked places remembered on the way to one waypoint before it is given up."""
DETOUR = 4
"""Steps that known walls add to the straight way before the way back is remembered as well."""
FAR = 10**6


@dataclass(frozen=True)
class Scene:
    """A picture and a context, read."""

    rules: SafariRules
    symbols: np.ndarray
    context: Context
    mission: Mission
    notes: Notes

    @cached_property
    def me(self) -> Tile:
        row, column = np.argwhere(self.symbols >= _FIRST_PLAYER)[0]
        return int(column), int(row)

    @cached_property
    def corner(self) -> Tile:
        return self.context.position[0] - self.me[0], self.context.position[1] - self.me[1]

    @cached_property
    def animals(self) -> dict[Tile, Animal]:
        """By tile; the one under the player's disc is not seen."""
        symbols = {(column, row): int(symbol) for (row, column), symbol in np.ndenumerate(self.symbols)}
        return {tile: animal for tile, symbol in symbols.items() if (animal := symbol_animal(symbol))}

    @cached_property
    def blocked(self) -> frozenset[Tile]:
        trees = {(int(column), int(row)) for row, column in np.argwhere(self.symbols == TREE)}
        return frozenset(trees | set(self.animals) if self.rules.rules == "catch" else trees)

    @cached_property
    def wanted(self) -> list[Animal]:
        """Targets not yet declared, in the mission's order."""
        found = {animal for _, animal in find_targets(self.context.found)}
        return [animal for animal in self.mission.targets if animal not in found]

    @cached_property
    def current(self) -> list[Animal]:
        """Targets that may be fetched now."""
        return self.wanted[:1] if self.mission.ordered else self.wanted

    @cached_property
    def walls(self) -> frozenset[Tile]:
        """Blocked places, in view and remembered."""
        remembered = {place for place in self.notes.walls if not in_view(place, self.corner)}
        return frozenset(remembered | {self.place(tile) for tile in self.blocked})

    def place(self, tile: Tile) -> Tile:
        return tile[0] + self.corner[0], tile[1] + self.corner[1]

    def tile(self, place: Tile) -> Tile | None:
        """The view tile that shows a place; None if it is out of view."""
        if not in_view(place, self.corner):
            return None
        return place[0] - self.corner[0], place[1] - self.corner[1]

    def corner_at(self, tile: Tile) -> Tile:
        """The view's corner once the player stands on `tile`."""
        return view_corner(self.place(tile), self.rules.width, self.rules.height)


_FIRST_PLAYER = 2 + 64


@dataclass(frozen=True)
class Decision:
    """What to do and why; `end` is the view tile the player then stands on."""

    reasons: Reasons
    plan: Plan
    notes: Notes
    end: Tile
    found: Animal | None = None


class SafariOracle:
    """Decides from (picture, context) alone; `rules` tells it the world's size and whether animals block.

    max_path: tiles walked in a turn. max_final_path: tiles to the target in the turn that declares it; up to 3 they
    must be one straight run, which is easier to imitate.
    """

    def __init__(
        self, rules: SafariRules, *, max_path: int = 12, max_final_path: int = 12, thought_form: str = "tiles"
    ):
        if not (1 <= max_path <= MAX_ACTIONS * MAX_STEPS and 1 <= max_final_path <= MAX_ACTIONS * MAX_STEPS):
            raise ValueError(
                f"max_path {max_path} and max_final_path {max_final_path}: one move walks 1 to "
                f"{MAX_ACTIONS * MAX_STEPS} tiles, so no turn could do that; choose from that range"
            )
        self.rules = rules
        self.max_path = max_path
        self.max_final_path = max_final_path
        self.form = THOUGHT_FORMS[thought_form]

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(self.turn_on(request)) for request in requests]

    def turn_on(self, request: Request) -> Turn:
        observation = request.observation
        return self.turn(read_view(observation.pictures[0].open()), observation.text)

    def turn(self, symbols: np.ndarray, text: str) -> Turn:
        """The turn for a (10, 10) view and a context text."""
        scene, written = self.read(symbols, text)
        decision = self.decide(scene)
        thought = write_thought(self.form, scene.corner, decision.reasons, decision.plan)
        return Turn(thought, tuple(self.calls(scene, decision, written)))

    def read(self, symbols: np.ndarray, text: str) -> tuple[Scene, str | None]:
        """The scene, and the notepad as it would be written now (None if someone else wrote it)."""
        context = read_context(text)
        zones = zone_counts(self.rules.width, self.rules.height)
        written = read_notes(context.notepad, zones)
        # a notepad from before the mission may be of another world
        notes = written if written is not None and context.step > 1 else Notes()
        scene = Scene(self.rules, symbols, context, read_mission(context.mission), notes)
        scene = replace(scene, notes=replace(notes, seen=still_true(scene)))
        return scene, None if written is None else write_notes(self.pruned(scene, written), zones)

    def pruned(self, scene: Scene, notes: Notes) -> Notes:
        """Notes without what no longer matters, so that they are not rewritten for that alone."""
        return replace(notes, seen=tuple((animal, place) for animal, place in notes.seen if animal in scene.wanted))

    def decide(self, scene: Scene) -> Decision:
        if not scene.wanted:
            return Decision(Reasons(scene.me), Plan(done=True), scene.notes, scene.me)
        decision = self.fetch(scene) or self.chase(scene) or self.step_off(scene) or self.search(scene)
        return replace(decision, notes=replace(decision.notes, seen=self.seen_after(scene, decision)))

    # fetching a target in view

    def fetch(self, scene: Scene) -> Decision | None:
        """Walk to the nearest target in view, and declare it if the way is short enough."""
        ways = [
            (len(way), scene.current.index(animal), tile[1], tile[0], way)
            for tile, animal in scene.animals.items()
            if animal in scene.current and (way := shortest_way(scene.me, tile, scene.blocked))
        ]
        if not ways:
            return None
        way = min(ways)[-1]
        target = scene.animals[way[-1]]
        reasons = Reasons(scene.me, targets=self.shown(scene, {target: way[-1]}))
        if self.is_final(scene, way):
            return self.declaring(scene, way, target, reasons)
        # stop where the last run starts, or at least before the target
        kept = min(last_run(scene.me, way), self.max_final_path) if self.wants_straight else 1
        return self.walking(scene, reasons, first_part(scene.me, way[:-kept], self.max_path), scene.notes)

    @property
    def wants_straight(self) -> bool:
        return self.max_final_path <= MAX_STEPS

    def is_final(self, scene: Scene, way: list[Tile]) -> bool:
        if len(way) > self.max_final_path or (self.wants_straight and last_run(scene.me, way) < len(way)):
            return False
        return len(actions_of(scene.me, self.walked(way))) <= MAX_ACTIONS

    def walked(self, way: list[Tile]) -> list[Tile]:
        """The tiles of a way to a target that are stepped on."""
        return way[:-1] if self.rules.rules == "catch" else way

    def declaring(self, scene: Scene, way: list[Tile], target: Animal, reasons: Reasons) -> Decision:
        walked = self.walked(way)
        end = walked[-1] if walked else scene.me
        catch = direction_between(end, way[-1]) if self.rules.rules == "catch" else ""
        is_last = len(scene.wanted) == 1
        plan = Plan(tuple(actions_of(scene.me, walked)), catch, found=True, done=is_last)
        return Decision(replace(reasons, way=tuple(way)), plan, scene.notes, end, found=target)

    # walking towards a place that is out of view or has no way to it within the view

    def chase(self, scene: Scene) -> Decision | None:
        """Head for a target in view that no way in view leads to, or for one noted earlier."""
        in_sight = {animal: tile for tile, animal in scene.animals.items() if animal in scene.current}
        for animal, tile in in_sight.items():
            reasons = Reasons(scene.me, targets=self.shown(scene, {animal: tile}))
            decision = self.head_for(scene, [scene.place(tile)], reasons, scene.notes)
            if decision:
                return decision
        noted = [
            (walk(place, scene.context.position), place)
            for animal, place in scene.notes.seen
            if animal in scene.current
        ]
        for _, place in sorted(noted):
            reasons = Reasons(scene.me, targets=self.shown(scene, {}), known=place)
            decision = self.head_for(scene, [place], reasons, scene.notes)
            if decision:
                return decision
        return None

    def search(self, scene: Scene) -> Decision:
        """Head for the next zone's waypoint, marking zones that are seen whole."""
        notes, swept = scene.notes, []
        reasons = Reasons(scene.me, targets=self.shown(scene, {}))
        for _ in range(4 * self.num_zones):
            if notes.go is None:
                notes = self.next_zone(scene, notes)
            decision = None
            if not self.is_swept(scene, notes):
                shown = replace(reasons, swept=tuple(swept), zone=tile_name(notes.go))
                decision = self.head_for(replace_notes(scene, notes), self.waypoint_goals(scene, notes), shown, notes)
            if decision and len(decision.notes.walls) <= MAX_WALLS:
                return decision
            swept.append(tile_name(notes.go))
            notes = replace(notes.with_swept(notes.go), go=None, walls=())
        return self.walking(scene, reasons, [], scene.notes)  # walled in: nothing can be reached

    @property
    def num_zones(self) -> int:
        columns, rows = zone_counts(self.rules.width, self.rules.height)
        return columns * rows

    def next_zone(self, scene: Scene, notes: Notes) -> Notes:
        """The nearest zone not yet swept becomes the one to go to; after the last one a new sweep begins."""
        columns, rows = zone_counts(self.rules.width, self.rules.height)
        zones = [(x, y) for y in range(rows) for x in range(columns)]
        if len(notes.swept) >= len(zones):
            notes = replace(notes, swept=frozenset(), sweep=notes.sweep + 1)
        left = [zone for zone in zones if zone not in notes.swept]
        go = min(left, key=lambda zone: walk(self.waypoint(zone, notes.sweep), scene.context.position))
        return replace(notes, go=go)

    def waypoint(self, zone: Tile, sweep: int) -> Tile:
        """The place from which a zone is seen whole, shifted in later sweeps."""
        shift = VIEW // 2 + SWEEP_SHIFTS[sweep % len(SWEEP_SHIFTS)]
        return min(zone[0] * VIEW + shift, self.rules.width - 1), min(zone[1] * VIEW + shift, self.rules.height - 1)

    def waypoint_goals(self, scene: Scene, notes: Notes) -> list[Tile]:
        """The waypoint, or the tiles around it if something stands on it."""
        place = self.waypoint(notes.go, notes.sweep)
        if self.is_standing_room(scene, place):
            return [place]
        around = [(place[0] + dx, place[1] + dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        return [other for other in around if self.is_standing_room(scene, other)]

    def is_standing_room(self, scene: Scene, place: Tile) -> bool:
        """Not blocked and not an animal's, as far as can be seen."""
        inside = 0 <= place[0] < self.rules.width and 0 <= place[1] < self.rules.height
        return inside and place not in scene.walls and scene.tile(place) not in scene.animals

    def is_swept(self, scene: Scene, notes: Notes) -> bool:
        """The zone to go to fills the view, or the player stands where its waypoint allows."""
        waypoint = self.waypoint(notes.go, notes.sweep)
        if scene.corner == view_corner(waypoint, self.rules.width, self.rules.height):
            return True
        return scene.context.position in self.waypoint_goals(scene, notes)

    def head_for(self, scene: Scene, goals: list[Tile], reasons: Reasons, notes: Notes) -> Decision | None:
        """Walk to the view tile that is best towards the goals; None if they cannot be reached or are here."""
        field = self.field(goals, scene.walls, scene.corner)
        go = best_tile(scene.me, scene.blocked, scene.animals, scene.corner, field)
        way = shortest_way(scene.me, go, scene.blocked) if go else None
        if not way:
            return None
        part = first_part(scene.me, way, self.max_path)
        decision = self.walking(scene, replace(reasons, go=go), part, notes)
        walls = self.walls_to_remember(scene, decision.end, goals, field)
        return replace(decision, notes=replace(notes, walls=tuple(dict.fromkeys([*notes.walls, *walls]))))

    def field(self, goals: list[Tile], walls: Set[Tile], corner: Tile, *others: Tile) -> dict[Tile, int]:
        """Steps to the nearest goal, for the free places of a view and for `others`; unseen tiles count as free."""
        shown = {(corner[0] + column, corner[1] + row) for row in range(VIEW) for column in range(VIEW)}
        blocked = walls - set(goals)
        return distances(goals, blocked, self.rules.width, self.rules.height, until=(shown | {*others}) - blocked)

    def walls_to_remember(self, scene: Scene, end: Tile, goals: list[Tile], field: dict[Tile, int]) -> list[Tile]:
        """Blocked places that leave the view with this turn's walk and that a later turn would head into.

        Without them the tile that the next turn would walk to, or this one after a long detour, would look nearer to
        the goals than it is known to be: the player would come back for it and circle.
        """
        corner, here, start = scene.corner_at(end), scene.place(end), scene.place(scene.me)
        is_detour = field[start] >= min(walk(start, goal) for goal in goals) + DETOUR
        kept = {place for place in scene.walls if in_view(place, corner)} | set(scene.notes.walls)
        added = []
        while len(added) < MAX_WALLS:
            forgetful = self.field(goals, kept, corner, start)
            watched = [best_place(here, kept, corner, forgetful), start if is_detour else None]
            misjudged = [place for place in watched if place and forgetful[place] < field.get(place, FAR)]
            hits = [first_wall(place, forgetful, scene.walls - kept) for place in misjudged]
            hits = [hit for hit in hits if hit]
            if not hits:
                break
            added.append(hits[0])
            kept.add(hits[0])
        return added

    def walking(self, scene: Scene, reasons: Reasons, way: list[Tile], notes: Notes) -> Decision:
        """Walk a part of a way, not ending on an animal: the disc would hide it."""
        part = list(way)
        while len(part) > 1 and part[-1] in scene.animals:
            part.pop()
        plan = Plan(tuple(actions_of(scene.me, part)))
        return Decision(replace(reasons, way=tuple(part)), plan, notes, part[-1] if part else scene.me)

    def step_off(self, scene: Scene) -> Decision | None:
        """Off a tile whose colour is a wanted one, as the disc hides what stands here; then it is in view."""
        colour = player_colour(int(scene.symbols[scene.me[1], scene.me[0]]))
        if colour not in {animal.colour for animal in scene.current}:
            return None
        for dx, dy in DIRECTIONS.values():
            tile = (scene.me[0] + dx, scene.me[1] + dy)
            inside = 0 <= tile[0] < VIEW and 0 <= tile[1] < VIEW
            if inside and tile not in scene.blocked and tile not in scene.animals:
                return self.walking(scene, Reasons(scene.me, targets=self.shown(scene, {})), [tile], scene.notes)
        return None

    # what is said and written

    def shown(self, scene: Scene, chosen: dict[Animal, Tile]) -> tuple[tuple[str, Tile | None], ...]:
        """Every target that may be fetched now, with the tile that is meant."""
        seen = {animal: tile for tile, animal in scene.animals.items()} | chosen
        return tuple((animal.name, seen.get(animal)) for animal in scene.current)

    def seen_after(self, scene: Scene, decision: Decision) -> tuple[tuple[Animal, Tile], ...]:
        """Targets to keep in the notepad: noted before, or in view now and out of view (or hidden) after this turn."""
        corner = scene.corner_at(decision.end)
        noted = dict(scene.notes.seen)
        for tile, animal in scene.animals.items():
            if animal in scene.wanted and animal not in noted:
                place = scene.place(tile)
                if not in_view(place, corner) or tile == decision.end:
                    noted[animal] = place
        return tuple((animal, noted[animal]) for animal in scene.wanted if animal in noted and animal != decision.found)

    def calls(self, scene: Scene, decision: Decision, written: str | None) -> list[ToolCall]:
        zones = zone_counts(self.rules.width, self.rules.height)
        notes = write_notes(decision.notes, zones)
        calls = []
        if notes != written and not (decision.found and len(scene.wanted) == 1) and scene.wanted:
            calls.append(ToolCall("update_notepad", {"content": notes}))
        if decision.plan.moves:
            actions = [{"direction": direction, "steps": steps} for direction, steps in decision.plan.moves]
            calls.append(ToolCall("move", {"actions": actions}))
        if decision.plan.catch:
            calls.append(ToolCall("catch", {"direction": decision.plan.catch}))
        if decision.found:
            calls.append(ToolCall("declare_found", {"target": scene.mission.wording(decision.found)}))
        if decision.plan.done:
            calls.append(ToolCall("declare_done", {}))
        if not calls:
            calls.append(ToolCall("update_notepad", {"content": notes}))
        return calls


def replace_notes(scene: Scene, notes: Notes) -> Scene:
    return replace(scene, notes=notes)


def still_true(scene: Scene) -> tuple[tuple[Animal, Tile], ...]:
    """Noted targets that are still wanted and not seen to be gone."""
    return tuple(
        (animal, place)
        for animal, place in scene.notes.seen
        if animal in scene.wanted
        and (scene.tile(place) in (None, scene.me) or scene.animals.get(scene.tile(place)) == animal)
    )


def best_tile(me: Tile, blocked, animals, corner: Tile, field: dict[Tile, int]) -> Tile | None:
    """The view tile on a shortest way to the field's goals, as far along it as the view shows; None if there is none.

    Tiles out of view count as free, and animals are walked over but not stopped on.
    """
    steps = distances([me], blocked, VIEW, VIEW)
    ways = []
    for tile, walked in steps.items():
        left = field.get((tile[0] + corner[0], tile[1] + corner[1]))
        if left is not None and tile not in animals and tile != me:
            ways.append((walked + left, left, tile[1], tile[0]))
    if not ways:
        return None
    _, _, row, column = min(ways)
    return column, row


def best_place(here: Tile, walls, corner: Tile, field: dict[Tile, int]) -> Tile | None:
    """`best_tile` from a place in a later view, as a place."""
    blocked = frozenset((x - corner[0], y - corner[1]) for x, y in walls if in_view((x, y), corner))
    tile = best_tile((here[0] - corner[0], here[1] - corner[1]), blocked, {}, corner, field)
    return (tile[0] + corner[0], tile[1] + corner[1]) if tile else None


def first_wall(place: Tile, field: dict[Tile, int], walls) -> Tile | None:
    """The first of `walls` on the way down a field from `place`."""
    while field[place] > 0:
        ahead = [(place[0] + dx, place[1] + dy) for dx, dy in DIRECTIONS.values()]
        place = min((tile for tile in ahead if tile in field), key=lambda tile: (field[tile], tile not in walls))
        if place in walls:
            return place
    return None


class RandomAgent:
    """Random calls that look legal; with `declare=False` it never says that something was found or done."""

    def __init__(self, rules: SafariRules, *, seed: int = 0, declare: bool = True):
        self.rules, self.seed, self.declare = rules, seed, declare

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(self.turn(request_rng(self.seed, request), request)) for request in requests]

    def turn(self, rng: random.Random, request: Request) -> Turn:
        if self.declare and rng.random() < 0.1:
            mission = read_mission(read_context(request.observation.text).mission)
            found = ToolCall("declare_found", {"target": rng.choice(mission.wordings or ("red tiger",))})
            return Turn(tool_calls=(rng.choice((found, ToolCall("declare_done", {}))),))
        if self.rules.rules == "catch" and self.declare and rng.random() < 0.2:
            return Turn(tool_calls=(ToolCall("catch", {"direction": rng.choice(list(DIRECTIONS))}),))
        return Turn(tool_calls=(random_move(rng),))


def random_move(rng: random.Random) -> ToolCall:
    actions = [
        {"direction": rng.choice(list(DIRECTIONS)), "steps": rng.randint(1, MAX_STEPS)}
        for _ in range(rng.randint(1, MAX_ACTIONS))
    ]
    return ToolCall("move", {"actions": actions})


def request_rng(seed: int, request: Request) -> random.Random:
    """Randomness that is a function of what was asked."""
    text = f"{seed}\n{request.observation.text}"
    return random.Random(hashlib.sha256(text.encode()).hexdigest())


class NoisyOracle:
    """The oracle, but with probability `noise` a random move instead."""

    def __init__(self, oracle: SafariOracle, *, noise: float = 0.3, seed: int = 0):
        self.oracle, self.noise, self.seed = oracle, noise, seed

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(self.turn(request)) for request in requests]

    def turn(self, request: Request) -> Turn:
        rng = request_rng(self.seed, request)
        if rng.random() < self.noise:
            return Turn(tool_calls=(random_move(rng),))
        return self.oracle.turn_on(request)
