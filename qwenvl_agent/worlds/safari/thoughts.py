"""Thoughts in a fixed form, each piece readable from what stands before it: position, target, where to, way, plan.

The words of a form are a table, so another form is another table.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qwenvl_agent.schema import ToolCall, ToolResult
from qwenvl_agent.worlds.safari.context import Context, read_context
from qwenvl_agent.worlds.safari.missions import find_targets, read_mission, resolve_target
from qwenvl_agent.worlds.safari.notepad import tile_name
from qwenvl_agent.worlds.safari.paths import Action, directions_of
from qwenvl_agent.worlds.safari.world import DIRECTIONS, Tile

MAX_WORDS_CHARS = 80
"""Of a target that no lexicon knows."""


@dataclass(frozen=True)
class Plan:
    """What a turn does, in order: moves, a catch, a declaration, the end."""

    moves: tuple[Action, ...] = ()
    catch: str = ""
    found: bool = False
    done: bool = False

    def text(self) -> str:
        walked = " ".join(f"{direction} {steps}" for direction, steps in self.moves)
        parts = (walked, self.catch and f"catch {self.catch}", self.found and "found", self.done and "done")
        return ", ".join(part for part in parts if part) or "wait"


@dataclass(frozen=True)
class ThoughtForm:
    """Words, and how a tile is named from its place in the view and in the world."""

    me: str
    target: str
    target_absent: str
    swept: str
    zone: str
    known: str
    go: str
    way: str
    blocked: str
    content: str
    plan: str
    tile: Callable[[Tile, Tile], str]
    looks: bool = False
    """Whether every tile of the way is led to by its direction and followed by what stands on it, so that a way that is
    blocked is seen to be; and the tile that is declared by `target`, which `found` then copies."""


THOUGHT_FORMS = {
    "tiles": ThoughtForm(
        me="Me {}.",
        target="Target {}.",
        target_absent="none",
        swept="Done {}.",
        zone="Zone {}, go {}.",
        known="Known {}, go {}.",
        go="Go {}.",
        way="Path {}.",
        blocked="Blocked {}.",
        content="Tile {}.",
        plan="Plan {}.",
        tile=lambda view, world: tile_name(view),
    )
}
THOUGHT_FORMS["world"] = replace(
    THOUGHT_FORMS["tiles"], me="At {}.", tile=lambda view, world: f"({world[0]}, {world[1]})"
)
THOUGHT_FORMS["looking"] = replace(THOUGHT_FORMS["tiles"], looks=True)
"""Looks before it walks, in the words in which the tiny base has learned it (scripts/pretrain_tiny.py, stage looks)."""


def thought_form_named(name: str) -> ThoughtForm:
    if name not in THOUGHT_FORMS:
        raise ValueError(
            f"thought form {name!r} does not exist: no thought could be written; use one of {', '.join(THOUGHT_FORMS)}"
        )
    return THOUGHT_FORMS[name]


@dataclass(frozen=True)
class Reasons:
    """What a thought says before its plan; tiles in view coordinates."""

    me: Tile
    blocked: Tile | None = None
    """What the context says that the last walk was blocked by."""
    targets: Sequence[tuple[str, Tile | None]] = ()
    """Name and tile, None for one out of view."""
    swept: Sequence[str] = ()
    """Zones found to be swept in this turn."""
    zone: str = ""
    known: Tile | None = None
    """World tile of a target out of view."""
    go: Tile | None = None
    aim: Tile | None = None
    """Where the way leads in the end, perhaps in a later turn."""
    false_starts: Sequence[Sequence[Tile]] = ()
    """Ways that were thought of first and end at something that blocks."""
    way: Sequence[Tile] = ()
    contents: Mapping[Tile, str] = field(default_factory=dict)
    """What stands on the tiles of the ways, for forms that say it."""


def write_thought(form: ThoughtForm, corner: Tile, reasons: Reasons, plan: Plan) -> str:
    """One line; `corner` is the view's place in the world."""

    def name(tile: Tile) -> str:
        return form.tile(tile, (tile[0] + corner[0], tile[1] + corner[1]))

    parts = [form.me.format(name(reasons.me))]
    if reasons.blocked:
        parts.append(form.blocked.format(name(reasons.blocked)))
    if reasons.targets:
        shown = (f"{target} {name(tile) if tile else form.target_absent}" for target, tile in reasons.targets)
        parts.append(form.target.format(", ".join(shown)))
    parts += [form.swept.format(zone) for zone in reasons.swept]
    if reasons.go:
        go = name(reasons.go)
        if reasons.known:
            parts.append(form.known.format(f"({reasons.known[0]}, {reasons.known[1]})", go))
        else:
            parts.append(form.zone.format(reasons.zone, go) if reasons.zone else form.go.format(go))
    for way in (*reasons.false_starts, reasons.way):
        mark = " target" if form.looks and way is reasons.way and plan.found else ""
        parts += [form.way.format(" ".join(_steps(form, name, reasons, way)) + mark)] if way else []
    parts.append(form.plan.format(plan.text()))
    return " ".join(parts)


def _steps(form: ThoughtForm, name: Callable[[Tile], str], reasons: Reasons, way: Sequence[Tile]) -> Iterator[str]:
    """The tiles of a way as the form says them."""
    for direction, tile in zip(directions_of(reasons.me, way), way, strict=True):
        yield f"{direction} {name(tile)} {reasons.contents[tile]}" if form.looks else name(tile)


def generate_thought(text: str, calls: Sequence[ToolCall], results: Sequence[ToolResult]) -> str:
    """A thought for a recorded turn without a usable one: what its context, calls and results tell, in world form.

    `At (25, 25). Target blue giraffe. Blocked none. Plan RIGHT 3 DOWN 3, catch RIGHT, found.` Coordinates are the
    context's and the calls', so thought and arguments agree. ValueError for a context in another form.
    """
    context, form = read_context(text), THOUGHT_FORMS["world"]
    blocked = blocked_place(context.position, calls, results)
    parts = (
        form.me.format(form.tile(None, context.position)),
        form.target.format(target_name(context, calls)),
        form.blocked.format(form.tile(None, blocked) if blocked else form.target_absent),
        form.plan.format(plan_of_calls(calls).text()),
    )
    return " ".join(parts)


def target_name(context: Context, calls: Sequence[ToolCall]) -> str:
    """The target declared in this turn, else the first one not yet found, in English; else the mission's own words."""
    declared = [str(call.arguments["target"]) for call in calls if call.name == "declare_found"]
    found = {animal for _, animal in find_targets(context.found)}
    wanted = [animal for animal in read_mission(context.mission).targets if animal not in found]
    if declared:
        animal = resolve_target(declared[0])
        words = declared[0]
    else:
        animal = wanted[0] if wanted else None
        words = "none" if found else context.mission
    return animal.name if animal else " ".join(words.split())[:MAX_WORDS_CHARS].replace(".", "")


def plan_of_calls(calls: Sequence[ToolCall]) -> Plan:
    """What the calls do, as a plan; notes are no part of it."""
    moves = [action for call in calls if call.name == "move" for action in call.arguments["actions"]]
    names = [call.name for call in calls]
    return Plan(
        moves=tuple((action["direction"], int(action["steps"])) for action in moves),
        catch=" ".join(call.arguments["direction"] for call in calls if call.name == "catch"),
        found="declare_found" in names,
        done="declare_done" in names,
    )


def blocked_place(start: Tile, calls: Sequence[ToolCall], results: Sequence[ToolResult]) -> Tile | None:
    """The place that stopped the first move, from where it ended; None if nothing did or the results do not say."""
    for call, result in zip(calls, results, strict=False):
        if call.name != "move":
            continue
        pos = result.content.get("pos")
        if result.content.get("blocked") is not True or not isinstance(pos, dict):
            return None
        walked, place = result.content.get("actualSteps"), start
        for action in call.arguments["actions"]:
            dx, dy = DIRECTIONS[action["direction"]]
            if walked != action["steps"] and isinstance(walked, int):
                end = (place[0] + dx * walked, place[1] + dy * walked)
                if end == (pos.get("x"), pos.get("y")):
                    return end[0] + dx, end[1] + dy
            place = (place[0] + dx * action["steps"], place[1] + dy * action["steps"])
        return None
    return None
