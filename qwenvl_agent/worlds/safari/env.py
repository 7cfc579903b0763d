"""Vision Safari: find animals on a grid of which only 10x10 tiles are seen.

Description
    A world of trees and animals on coloured tiles. The mission names one to three animals by colour and kind; the
    player walks, keeps notes, declares each target found and at last declares that he is done.

Mission Space
    Korean, English or Chinese; one, two or three targets, in order or not (`missions.py`).

Action Space
    A `Turn`: any number of calls of `tools.TOOLS[rules]`, run in order. Under `reach` animals do not block and a target
    is found by standing on its tile; under `catch` animals block like trees and a target is found by catching it.

Observation Encoding
    One picture (the view, `render.py`) and the context text: mission, step, position, with `tell_last` what the turn
    before did, found targets, notepad.

Rewards
    1 when the mission ends in success, else 0.

Termination
    `declare_done` terminates, `max_turns` truncates. Success is: declare_done was called, every target was declared
    found, and nothing was declared found that was not.

Registered Configurations
    `SafariRules` (`world.py`); its defaults are the full 50x50 game.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import permutations

from qwenvl_agent.schema import Observation, Picture, ToolCall, ToolResult, Turn, tool_named
from qwenvl_agent.worlds.safari.context import NOTHING_YET, context_text, last_turn
from qwenvl_agent.worlds.safari.missions import Mission, resolve_target, with_typos, write_mission
from qwenvl_agent.worlds.safari.render import render_view, view_symbols
from qwenvl_agent.worlds.safari.tools import MAX_ACTIONS, MAX_STEPS, TOOLS, argument_error
from qwenvl_agent.worlds.safari.world import (
    COLOURS,
    DIRECTIONS,
    FAR,
    SPRITES,
    Animal,
    SafariRules,
    Tile,
    World,
    distances,
    draw_task,
    in_view,
    neighbours,
    view_corner,
)

SYSTEM_PROMPT = {
    "reach": (
        "You are on safari in a world of {width}x{height} tiles; x grows to the right, y downward. The picture shows "
        "10x10 tiles around you, P: columns a to j, rows 0 to 9. Trees block. Stand on a target, then call "
        "declare_found in the mission's words; when all are found call declare_done."
    ),
    "catch": (
        "You are on safari in a world of {width}x{height} tiles; x grows to the right, y downward. The picture shows "
        "10x10 tiles around you, P: columns a to j, rows 0 to 9. Trees and animals block. Catch a target from beside "
        "it, then call declare_found in the mission's words; when all are found call declare_done."
    ),
}


def system_prompt(rules: SafariRules) -> str:
    return SYSTEM_PROMPT[rules.rules].format(width=rules.width, height=rules.height)


class SafariEnv:
    """One game at a time. `reset(options=...)` puts it into another state than its start (`start_elsewhere`).

    `info` of reset and step: results, goals, reached, harm (false declarations), invalid_calls, optimal_turns, calls (name,
    legal, effective of each call of the turn), first_view_outside, has_typos (with the rule `typos`), success and
    end_reason ("", done or max_turns).
    """

    def __init__(self, rules: SafariRules):
        self.rules = rules
        self.tools = TOOLS[rules.rules]
        self.system_prompt = system_prompt(rules)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Observation, dict]:
        rng = random.Random(seed)
        rules = self.rules
        self.world, targets = draw_task(rules, rng)
        ordered = rng.random() < rules.ordered
        language = rng.choice(rules.languages)
        self.mission = write_mission(targets, ordered, language, rng, rules.plain_missions, rules.phrasing)
        self.has_typos = False
        if rules.typos:
            said = self.mission.text
            self.mission = with_typos(self.mission, rules.typos, rng)
            self.has_typos = self.mission.text != said
        self.player = self.world.start
        self.notepad = ""
        self.last: str | None = NOTHING_YET if rules.tell_last else None
        self.unseen: frozenset[Tile] = frozenset()
        self.turn = 0
        self.found: list[Animal] = []
        self.declared: list[str] = []
        self.caught: list[Animal] = []
        self.gone: list[Tile] = []
        self.false_declarations: list[str] = []
        self.num_invalid_calls = 0
        self.end_reason = ""
        self.optimal_turns = estimate_turns(self.world, self.mission, self.rules)
        corner = view_corner(self.player, rules.width, rules.height)
        wanted = [place for place, animal in self.world.animals.items() if animal in targets]
        self.first_view_outside = not any(in_view(place, corner) for place in wanted)
        self.start_elsewhere(**(options or {}))
        return self.observation(), self.info((), [])

    def start_elsewhere(
        self,
        *,
        notepad: str = "",
        player: Tile | None = None,
        turn: int = 0,
        found: Sequence[int] = (),
        gone: Sequence[Tile] = (),
        calls: Sequence[ToolCall] = (),
        unseen: Sequence[Tile] = (),
    ) -> None:
        """The options of `reset`.

        notepad: brought along, from an earlier mission or an earlier turn. player: place to stand on. turn: turns taken
        before. found: indices of the mission's targets that were found. gone: places of the animals that were caught.
        calls: those of the turn before, run from `player`. unseen: trees that the first picture does not show.
        """
        for place in gone:
            self.caught.append(self.world.animals.pop(place))
        self.gone = list(gone)
        for target in (self.mission.targets[index] for index in found):
            self.found.append(target)
            self.declared.append(self.mission.wording(target))
        if player is not None:
            self.player = check_standing(self.world, self.rules, player)
        self.notepad, self.turn, self.unseen = str(notepad), turn, frozenset(unseen)
        if calls:
            before = self.player
            self.tell(before, [ToolResult(call.name, self.run_call(call)[0]) for call in calls])

    def tell(self, before: Tile, results: Sequence[ToolResult]) -> None:
        """What the turn did, for the next context."""
        if self.rules.tell_last:
            corner = view_corner(self.player, self.rules.width, self.rules.height)
            self.last = last_turn(before, results, corner)

    def close(self) -> None:
        """Nothing is open."""

    def step(self, turn: Turn) -> tuple[Observation, float, bool, bool, dict]:
        if self.end_reason:
            raise ValueError(f"the episode has ended ({self.end_reason}): a step has no meaning; call reset first")
        results, flags, before = [], [], self.player
        for call in turn.tool_calls:
            if self.end_reason:
                break
            result, legal, effective = self.run_call(call)
            results.append(ToolResult(call.name, result))
            flags.append({"name": call.name, "legal": legal, "effective": effective})
        if not turn.tool_calls:
            results.append(ToolResult("", {"status": "no_tool_call"}))
        self.turn += 1
        self.unseen = frozenset()
        self.tell(before, results)
        terminated = self.end_reason == "done"
        truncated = not terminated and self.turn >= self.rules.max_turns
        if truncated:
            self.end_reason = "max_turns"
        info = self.info(tuple(results), flags)
        return self.observation(), float(info["success"]), terminated, truncated, info

    def observation(self) -> Observation:
        picture = render_view(self.view(), self.rules.tile_px, self.rules.sprites)
        step = min(self.turn + 1, self.rules.max_turns)  # after the last turn there is no further step
        found = ", ".join(self.declared)
        parts = (self.mission.text, step, self.rules.max_turns, self.player, found, self.notepad, self.last)
        return Observation(context_text(*parts), (Picture.from_image(picture),))

    def view(self):
        """The (10, 10) symbols that the picture shows."""
        return view_symbols(replace(self.world, trees=self.world.trees - self.unseen), self.player)

    def info(self, results: tuple[ToolResult, ...], flags: list[dict]) -> dict:
        return {
            "results": results,
            "calls": flags,
            "mission": self.mission.text,
            "goals": [animal.name for animal in self.mission.targets],
            "reached": [animal.name for animal in self.found],
            "harm": list(self.false_declarations),
            "invalid_calls": self.num_invalid_calls,
            "optimal_turns": self.optimal_turns,
            "first_view_outside": self.first_view_outside,
            **({"has_typos": self.has_typos} if self.rules.typos else {}),
            "end_reason": self.end_reason,
            "success": self.end_reason == "done" and not self.wanted() and not self.false_declarations,
        }

    def wanted(self) -> list[Animal]:
        """The targets not yet found, in the mission's order."""
        return [animal for animal in self.mission.targets if animal not in self.found]

    def run_call(self, call: ToolCall) -> tuple[dict, bool, bool]:
        """The result of a call, whether it was legal, and whether it changed anything."""
        if tool_named(self.tools, call.name) is None:
            self.num_invalid_calls += 1
            return {"status": "unknown_tool", "name": call.name}, False, False
        error = argument_error(call)
        if error:
            self.num_invalid_calls += 1
            return {"status": "invalid_arguments", "error": error}, False, False
        result, effective = getattr(self, call.name)(**call.arguments)
        return result, True, effective

    def move(self, actions: list[dict]) -> tuple[dict, bool]:
        before = self.player
        for action in actions:
            blocked, steps = False, 0
            while steps < int(action["steps"]) and not blocked:
                ahead = beside(self.player, action["direction"])
                blocked = self.is_blocked(ahead)
                if not blocked:
                    self.player = ahead
                    steps += 1
            if blocked:
                break
        result = {"moved": steps > 0, "actualSteps": steps, "blocked": blocked, "pos": xy(self.player)}
        if blocked and self.rules.tell_last:
            result["blocker"] = {**xy(ahead), "is": self.name_of(ahead)}
        return result, self.player != before

    def name_of(self, blocked: Tile) -> str:
        """What blocks there, in a word."""
        return "edge" if self.is_outside(blocked) else "tree" if blocked in self.world.trees else "animal"

    def is_blocked(self, tile: Tile) -> bool:
        if self.is_outside(tile) or tile in self.world.trees:
            return True
        return self.rules.rules == "catch" and tile in self.world.animals

    def is_outside(self, tile: Tile) -> bool:
        return not (0 <= tile[0] < self.rules.width and 0 <= tile[1] < self.rules.height)

    def catch(self, direction: str) -> tuple[dict, bool]:
        tile = beside(self.player, direction)
        if self.is_outside(tile):
            return {"success": False, "reason": "out_of_bounds"}, False
        animal = self.world.animals.pop(tile, None)
        if animal is None:
            return {"success": False, "reason": "no_animal"}, False
        self.caught.append(animal)
        self.gone.append(tile)
        shown = {"emoji": SPRITES[animal.kind], "bgColor": COLOURS[animal.colour]}
        return {"success": True, "animal": shown, "position": xy(tile)}, True

    def update_notepad(self, content: str) -> tuple[dict, bool]:
        changed = content != self.notepad
        self.notepad = content
        return {"status": "updated"}, changed

    def declare_found(self, target: str) -> tuple[dict, bool]:
        """The game believes the player, as the recorded one does; whether he was right is in info only."""
        animal = self.mission.target_named(target) or resolve_target(target)
        is_true = animal is not None and self.is_found(animal)
        if animal is not None and is_true:
            self.found.append(animal)
        else:
            self.false_declarations.append(target)
        self.declared.append(" ".join(target.split()))
        return {"status": "found", "target": target, "total": len(self.declared)}, is_true

    def is_found(self, animal: Animal) -> bool:
        """Whether declaring this animal now is true: wanted, in turn, and reached or caught."""
        wanted = self.wanted()
        if animal not in (wanted[:1] if self.mission.ordered else wanted):
            return False
        return animal in self.caught if self.rules.rules == "catch" else self.world.animals.get(self.player) == animal

    def declare_done(self, reason: str = "") -> tuple[dict, bool]:
        self.end_reason = "done"
        return {"status": "done"}, not self.wanted()


def xy(tile: Tile) -> dict[str, int]:
    return {"x": tile[0], "y": tile[1]}


def check_standing(world: World, rules: SafariRules, place: Sequence[int]) -> Tile:
    """The place as a tile; ValueError if nobody can stand there."""
    tile = (int(place[0]), int(place[1]))
    inside = 0 <= tile[0] < rules.width and 0 <= tile[1] < rules.height
    if not inside or tile in world.trees or (rules.rules == "catch" and tile in world.animals):
        raise ValueError(f"player {tile}: outside, or something stands there, so no game can begin; use a free place")
    return tile


def beside(tile: Tile, direction: str) -> Tile:
    dx, dy = DIRECTIONS[direction]
    return tile[0] + dx, tile[1] + dy


def estimate_turns(world: World, mission: Mission, rules: SafariRules) -> int:
    """Turns of a player who knows the world: shortest ways from target to target, 12 tiles a turn, one turn at least.

    Of several animals of a kind the nearest is taken each time, so it is an estimate; every order is tried if free.
    """
    walls = world.trees | set(world.animals) if rules.rules == "catch" else world.trees
    places = {target: [p for p, animal in world.animals.items() if animal == target] for target in mission.targets}
    fields = {
        place: distances([place], walls, world.width, world.height) for group in places.values() for place in group
    }

    def turns(order: Iterable[Animal]) -> int:
        here, total = world.start, 0
        for target in order:
            place = min(places[target], key=lambda place: fields[place].get(here, FAR))
            total += max(1, -(-fields[place].get(here, FAR) // (MAX_ACTIONS * MAX_STEPS)))
            here = place
            if rules.rules == "catch":
                here = next((tile for tile in neighbours(place) if fields[place].get(tile) == 1), place)
        return total

    orders = [mission.targets] if mission.ordered else permutations(mission.targets)
    return min(map(turns, orders))
