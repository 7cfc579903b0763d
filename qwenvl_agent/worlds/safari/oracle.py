"""The safari oracle: a policy that solves every shipped suite from what the agent sees, the picture and the context.

It keeps no state: all it knows of earlier turns stands in the notepad (`notepad.py`). In view it walks shortest ways
(`paths.py`); out of view it sweeps the zones (`sweep.py`), taking what it does not see for free, and writes down what it
would otherwise forget and walk into again (`heading.py`).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qwenvl_agent.schema import Answer, Request, ToolCall, Turn
from qwenvl_agent.worlds.safari.heading import MAX_WALLS, Field, best_place, field_to, walls_to_remember
from qwenvl_agent.worlds.safari.notepad import Notes, tile_name, write_notes
from qwenvl_agent.worlds.safari.paths import (
    actions_of,
    direction_between,
    first_part,
    last_run,
    shortest_way,
    straight_ways,
    upto_first,
)
from qwenvl_agent.worlds.safari.render import read_view
from qwenvl_agent.worlds.safari.scene import Scene, read_scene
from qwenvl_agent.worlds.safari.sweep import WAYPOINTS, is_swept, waypoint_goals, with_next_zone, zones_of
from qwenvl_agent.worlds.safari.thoughts import Plan, Reasons, thought_form_named, write_thought
from qwenvl_agent.worlds.safari.tools import MAX_ACTIONS, MAX_STEPS
from qwenvl_agent.worlds.safari.world import Animal, SafariRules, Tile, in_view, neighbours, walk

MAX_NOTED_WALLS = 100
"""The notepad holds no more."""


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
    must be one straight run, which is easier to imitate. waypoints: where zones are looked at from, `centres`, or
    `borders` or `regions`, which take no sums of coordinates (`sweep.py`). false_starts: share of the straight ways through something
    that blocks which a thought of a form that looks first goes, sees blocked, and leaves: who is taught good ways alone
    says that a way is free without looking. With such a form walks may end on animals that are no targets: else every
    walk that ends on an animal would be one that declares it, and what stands there need not be read.
    """

    def __init__(
        self,
        rules: SafariRules,
        *,
        max_path: int = 12,
        max_final_path: int = 12,
        thought_form: str = "tiles",
        waypoints: str = "centres",
        false_starts: float = 0.0,
    ):
        most = MAX_ACTIONS * MAX_STEPS
        if not (1 <= max_path <= most and 1 <= max_final_path <= most):
            raise ValueError(
                f"max_path {max_path} and max_final_path {max_final_path}: one move walks 1 to {most} tiles, so no "
                "turn could do that; choose from that range"
            )
        if waypoints not in WAYPOINTS:
            raise ValueError(f"waypoints {waypoints!r}: no zone could be walked to; use {', '.join(WAYPOINTS)}")
        self.form = thought_form_named(thought_form)
        if not 0 <= false_starts <= 1 or (false_starts and not self.form.looks):
            raise ValueError(
                f"false_starts {false_starts} with thought_form {thought_form!r}: it is a share, and only a form that says "
                "what stands on a way can leave one; use 0 to 1 with thought_form=looking"
            )
        self.false_starts = false_starts
        self.rules = rules
        self.waypoints = waypoints
        self.size = (rules.width, rules.height)
        self.max_path = max_path
        self.max_final_path = max_final_path

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(self.turn_on(request)) for request in requests]

    def turn_on(self, request: Request) -> Turn:
        observation = request.observation
        return self.turn(read_view(observation.pictures[0].open(), self.rules.sprites), observation.text)

    def turn(self, symbols: np.ndarray, text: str) -> Turn:
        """The turn for a (10, 10) view and a context text."""
        scene, written = read_scene(self.rules, symbols, text)
        scene = replace(scene, waypoints=self.waypoints, ends_on_animals=self.form.looks)
        decision = self.decide(scene)
        reasons = self.looking(scene, replace(decision.reasons, blocked=scene.context.blocked))
        thought = write_thought(self.form, scene.corner, reasons, decision.plan)
        return Turn(thought, tuple(self.calls(scene, decision, written)))

    def looking(self, scene: Scene, reasons: Reasons) -> Reasons:
        """The reasons with what stands on the ways, and with ways that were thought of first."""
        if not self.form.looks:
            return reasons
        rng = random.Random(f"{scene.context}{scene.symbols.tobytes().hex()}")
        straight = [way[: self.max_path] for way in straight_ways(scene.me, reasons.aim or scene.me)]
        blocked = [
            way for way in (upto_first(way, scene.blocked) for way in straight) if way and way[-1] != reasons.aim
        ]
        starts = [rng.choice(blocked)] if blocked and rng.random() < self.false_starts else []
        tiles = {tile for way in (*starts, reasons.way) for tile in way}
        return replace(reasons, false_starts=starts, contents={tile: scene.content(tile) for tile in tiles})

    def decide(self, scene: Scene) -> Decision:
        if not scene.wanted:
            return Decision(Reasons(scene.me), Plan(done=True), scene.notes, scene.me)
        decision = self.fetch(scene) or self.chase(scene) or self.step_off(scene) or self.search(scene)
        return replace(decision, notes=replace(decision.notes, seen=seen_after(scene, decision)))

    # what to do

    def fetch(self, scene: Scene) -> Decision | None:
        """Walk to the nearest target that a way in view leads to, and declare it if the way is short enough."""
        ways = [
            (len(way), scene.current.index(animal), tile[1], tile[0], way)
            for tile, animal in scene.animals.items()
            if animal in scene.current and (way := shortest_way(scene.me, tile, scene.blocked))
        ]
        if not ways:
            return None
        way = min(ways)[-1]
        target = scene.animals[way[-1]]
        reasons = Reasons(scene.me, targets=shown_targets(scene, {target: way[-1]}), aim=way[-1])
        if self.is_final(scene.me, way):
            return self.declaring(scene, way, target, reasons)
        # stop where the last run starts, or at least before the target
        kept = min(last_run(scene.me, way), self.max_final_path) if self.wants_straight else 1
        decision = walking(scene, reasons, first_part(scene.me, way[:-kept], self.max_path))
        if all(in_view(scene.place(tile), scene.corner_at(decision.end)) for tile in way):
            return decision
        goal = [scene.place(way[-1])]
        return remembering(scene, decision, goal, field_to(goal, scene.walls, scene.corner, self.size))

    @property
    def wants_straight(self) -> bool:
        return self.max_final_path <= MAX_STEPS

    def is_final(self, me: Tile, way: list[Tile]) -> bool:
        """Whether a way to a target may be walked in the turn that declares it."""
        if len(way) > self.max_final_path or (self.wants_straight and last_run(me, way) < len(way)):
            return False
        return len(actions_of(me, self.walked(way))) <= MAX_ACTIONS

    def walked(self, way: list[Tile]) -> list[Tile]:
        """The tiles of a way to a target that are stepped on."""
        return way[:-1] if self.rules.rules == "catch" else way

    def declaring(self, scene: Scene, way: list[Tile], target: Animal, reasons: Reasons) -> Decision:
        walked = self.walked(way)
        end = walked[-1] if walked else scene.me
        catch = direction_between(end, way[-1]) if self.rules.rules == "catch" else ""
        plan = Plan(tuple(actions_of(scene.me, walked)), catch, found=True, done=len(scene.wanted) == 1)
        return Decision(replace(reasons, way=tuple(way)), plan, scene.notes, end, found=target)

    def chase(self, scene: Scene) -> Decision | None:
        """Head for a target in view that no way in view leads to, or for the nearest one noted earlier."""
        position = scene.context.position
        in_sight = [(animal, tile) for tile, animal in scene.animals.items() if animal in scene.current]
        noted = sorted((walk(place, position), place) for animal, place in scene.notes.seen if animal in scene.current)
        aims = [(scene.place(tile), {"targets": shown_targets(scene, {animal: tile})}) for animal, tile in in_sight]
        aims += [(place, {"targets": shown_targets(scene), "known": place}) for _, place in noted]
        decisions = (self.head_for(scene, [place], Reasons(scene.me, **reasons)) for place, reasons in aims)
        return next((decision for decision in decisions if decision), None)

    def step_off(self, scene: Scene) -> Decision | None:
        """Off a tile whose colour is a wanted one, as the disc hides what stands here; then it is in view."""
        if scene.colour_under_me not in {animal.colour for animal in scene.current}:
            return None
        reasons = Reasons(scene.me, targets=shown_targets(scene))
        rooms = [tile for tile in neighbours(scene.me) if scene.is_standing_room(scene.place(tile))]
        return walking(scene, reasons, rooms[:1]) if rooms else None

    def search(self, scene: Scene) -> Decision:
        """Head for the next zone's waypoint, marking zones that are seen whole or cannot be reached."""
        swept: list[str] = []
        after: Tile | None = None
        reasons = Reasons(scene.me, targets=shown_targets(scene))
        for _ in range(4 * len(zones_of(self.rules))):
            if scene.notes.go is None:
                notes = with_next_zone(scene.notes, scene.context.position, self.rules, after)
                scene = with_notes(scene, notes)
            zone = scene.notes.go
            if not is_swept(scene):
                shown = replace(reasons, swept=tuple(swept), zone=tile_name(zone))
                decision = self.head_for(scene, waypoint_goals(scene), shown)
                if decision and len(decision.notes.walls) <= MAX_WALLS:
                    return decision
            swept.append(tile_name(zone))
            after = zone if self.waypoints != "centres" else None
            scene = with_notes(scene, replace(scene.notes, swept=scene.notes.swept | {zone}, go=None, walls=()))
        return walking(scene, reasons, [])  # walled in

    def head_for(self, scene: Scene, goals: list[Tile], reasons: Reasons) -> Decision | None:
        """Walk to the view tile that is best towards the goals; None if they cannot be reached."""
        field = field_to(goals, scene.walls, scene.corner, self.size)
        avoided = {scene.place(tile) for tile in scene.no_ends}
        place = best_place(scene.context.position, scene.walls, avoided, scene.corner, field)
        if place is None:
            return None
        go = scene.tile(place)
        way = first_part(scene.me, shortest_way(scene.me, go, scene.blocked), self.max_path)
        return remembering(scene, walking(scene, replace(reasons, go=go, aim=go), way), goals, field)

    def calls(self, scene: Scene, decision: Decision, written: Notes | None) -> list[ToolCall]:
        """The plan as calls, after an update of the notepad if it would say something else and is still needed."""
        calls, plan = [], decision.plan
        notes = write_notes(decision.notes, *self.size)
        is_new = written is None or notes != write_notes(without_found(written, scene.wanted), *self.size)
        if (is_new and not plan.done) or plan == Plan():
            calls.append(ToolCall("update_notepad", {"content": notes}))
        if plan.moves:
            actions = [{"direction": direction, "steps": steps} for direction, steps in plan.moves]
            calls.append(ToolCall("move", {"actions": actions}))
        if plan.catch:
            calls.append(ToolCall("catch", {"direction": plan.catch}))
        if decision.found:
            calls.append(ToolCall("declare_found", {"target": scene.mission.wording(decision.found)}))
        if plan.done:
            calls.append(ToolCall("declare_done", {}))
        return calls


def with_notes(scene: Scene, notes: Notes) -> Scene:
    return replace(scene, notes=notes)


def walking(scene: Scene, reasons: Reasons, way: Sequence[Tile]) -> Decision:
    """Walk a way, not ending on an animal that the disc must not hide."""
    part = list(way)
    while len(part) > 1 and part[-1] in scene.no_ends:
        part.pop()
    plan = Plan(tuple(actions_of(scene.me, part)))
    return Decision(replace(reasons, way=tuple(part)), plan, scene.notes, part[-1] if part else scene.me)


def remembering(scene: Scene, decision: Decision, goals: Sequence[Tile], field: Field) -> Decision:
    """The decision with what blocks on the way to the goals added to its notes, where it would be forgotten."""
    added = walls_to_remember(scene, scene.place(decision.end), goals, field)
    walls = tuple(dict.fromkeys([*scene.notes.walls, *added]))[-MAX_NOTED_WALLS:]
    return replace(decision, notes=replace(scene.notes, walls=walls))


def shown_targets(scene: Scene, chosen: dict[Animal, Tile] | None = None) -> tuple[tuple[str, Tile | None], ...]:
    """Every target that may be fetched now, with the tile that is meant if several show it."""
    seen = {animal: tile for tile, animal in scene.animals.items()} | (chosen or {})
    return tuple((animal.name, seen.get(animal)) for animal in scene.current)


def seen_after(scene: Scene, decision: Decision) -> tuple[tuple[Animal, Tile], ...]:
    """Targets to keep in the notepad: noted before, or in view now and out of view (or hidden) after this turn."""
    corner = scene.corner_at(decision.end)
    noted = dict(scene.notes.seen)
    for tile, animal in scene.animals.items():
        is_lost = not in_view(scene.place(tile), corner) or tile == decision.end
        if animal in scene.wanted and animal not in noted and is_lost:
            noted[animal] = scene.place(tile)
    return tuple((animal, noted[animal]) for animal in scene.wanted if animal in noted and animal != decision.found)


def without_found(notes: Notes, wanted: Sequence[Animal]) -> Notes:
    """Notes without targets that are found, so that they are not rewritten for that alone."""
    return replace(notes, seen=tuple((animal, place) for animal, place in notes.seen if animal in wanted))
