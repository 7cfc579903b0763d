"""The oracle's notepad: a short fixed form, written and read back.

    Map V. ..               one word per row of zones: V swept, . not yet
    Go b0                   the zone whose centre is walked to, kept until it is reached
    Sweep 1                 only from the second sweep on
    Seen red tiger (12, 30) targets that were seen and are out of view
    Walls (7, 4) (8, 4)     what blocks out of view and would be walked into again

A zone is 10x10 tiles, named like a tile: column letter, row digit. Lines that would say nothing are left out.
"""

import re
from dataclasses import dataclass, replace

from qwenvl_agent.envs.safari.missions import resolve_target
from qwenvl_agent.envs.safari.world import VIEW, Animal, Tile

SEEN = re.compile(r"([a-z]+ [a-z]+) \((\d+), (\d+)\)")
WALL = re.compile(r"\((\d+), (\d+)\)")


@dataclass(frozen=True)
class Notes:
    """What the oracle remembers; zones and tiles as (x, y)."""

    swept: frozenset[Tile] = frozenset()
    go: Tile | None = None
    sweep: int = 0
    seen: tuple[tuple[Animal, Tile], ...] = ()
    walls: tuple[Tile, ...] = ()

    def with_swept(self, zone: Tile) -> "Notes":
        return replace(self, swept=self.swept | {zone})


def tile_name(tile: Tile) -> str:
    """Column letter and row digit: (5, 5) in a view is f5."""
    return f"{chr(ord('a') + tile[0])}{tile[1]}"


def named_tile(name: str) -> Tile:
    return ord(name[0]) - ord("a"), int(name[1:])


def zone_counts(width: int, height: int) -> Tile:
    """Columns and rows of zones."""
    return -(-width // VIEW), -(-height // VIEW)


def write_notes(notes: Notes, zones: Tile) -> str:
    lines = []
    if notes.go or notes.swept:
        rows = ("".join("V" if (x, y) in notes.swept else "." for x in range(zones[0])) for y in range(zones[1]))
        lines.append("Map " + " ".join(rows))
    if notes.go:
        lines.append(f"Go {tile_name(notes.go)}")
    if notes.sweep:
        lines.append(f"Sweep {notes.sweep}")
    if notes.seen:
        lines.append("Seen " + ", ".join(f"{animal.name} ({x}, {y})" for animal, (x, y) in notes.seen))
    if notes.walls:
        lines.append("Walls " + " ".join(f"({x}, {y})" for x, y in notes.walls))
    return "\n".join(lines)


def read_notes(text: str, zones: Tile) -> Notes | None:
    """The notes in this form; None for any other text, which whoever held the notepad before may have left."""
    lines = dict(line.split(" ", 1) for line in text.split("\n") if " " in line)
    rows = lines.get("Map", "").split()
    go = lines.get("Go", "")
    notes = Notes(
        swept=frozenset((x, y) for y, row in enumerate(rows) for x, mark in enumerate(row) if mark == "V"),
        go=named_tile(go) if re.fullmatch(r"[a-z]\d+", go) else None,
        sweep=int(lines["Sweep"]) if re.fullmatch(r"\d{1,3}", lines.get("Sweep", "")) else 0,
        seen=tuple(
            (animal, (int(x), int(y)))
            for name, x, y in SEEN.findall(lines.get("Seen", ""))
            if (animal := resolve_target(name))
        ),
        walls=tuple((int(x), int(y)) for x, y in WALL.findall(lines.get("Walls", ""))),
    )
    inside = all(
        zone[0] < zones[0] and zone[1] < zones[1] for zone in [*notes.swept, *([notes.go] if notes.go else [])]
    )
    return notes if inside and write_notes(notes, zones) == text else None
