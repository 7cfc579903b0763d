"""Thoughts in a fixed form, each piece readable from what stands before it: position, target, where to, way, plan.

The words of a form are a table, so another form is another table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwenvl_agent.envs.safari.notepad import tile_name
from qwenvl_agent.envs.safari.paths import Action
from qwenvl_agent.envs.safari.world import Tile


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
    plan: str
    tile: Callable[[Tile, Tile], str]


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
        plan="Plan {}.",
        tile=lambda view, world: tile_name(view),
    ),
    "world": ThoughtForm(
        me="At {}.",
        target="Target {}.",
        target_absent="none",
        swept="Done {}.",
        zone="Zone {}, go {}.",
        known="Known {}, go {}.",
        go="Go {}.",
        way="Path {}.",
        plan="Plan {}.",
        tile=lambda view, world: f"({world[0]}, {world[1]})",
    ),
}


@dataclass(frozen=True)
class Reasons:
    """What a thought says before its plan; tiles in view coordinates."""

    me: Tile
    targets: Sequence[tuple[str, Tile | None]] = ()
    """Name and tile, None for one out of view."""
    swept: Sequence[str] = ()
    """Zones found to be swept in this turn."""
    zone: str = ""
    known: Tile | None = None
    """World tile of a target out of view."""
    go: Tile | None = None
    way: Sequence[Tile] = ()


def write_thought(form: ThoughtForm, corner: Tile, reasons: Reasons, plan: Plan) -> str:
    """One line; `corner` is the view's place in the world."""

    def name(tile: Tile) -> str:
        return form.tile(tile, (tile[0] + corner[0], tile[1] + corner[1]))

    parts = [form.me.format(name(reasons.me))]
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
    if reasons.way:
        parts.append(form.way.format(" ".join(map(name, reasons.way))))
    parts.append(form.plan.format(plan.text()))
    return " ".join(parts)
