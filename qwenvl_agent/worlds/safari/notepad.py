"""The oracle's notepad: a short fixed form, written and read back.

    Map V. ..               one word per row of zones: V swept, . not yet
    Go b0                   the zone whose centre is walked to, kept until it is reached
    Sweep 1                 only from the second sweep on
    Seen red tiger (12, 30) targets that were seen and are out of view
    Walls (7, 4) (8, 4)     what blocks out of view and would be walked into again

A zone is 10x10 tiles, named like a tile: column letter, row digit. Lines that would say nothing are left out.
"""

import re
from dataclasses import dataclass

from qwenvl_agent.worlds.safari.missions import resolve_target
from qwenvl_agent.worlds.safari.world import VIEW, Animal, Tile

TILE_NAME = re.compile(r"[a-z][0-9]{1,2}")
SEEN = re.compile(r"([a-z]+ [a-z]+) \(([0-9]{1,4}), ([0-9]{1,4})\)")
WALL = re.compile(r"\(([0-9]{1,4}), ([0-9]{1,4})\)")


@dataclass(frozen=True)
class Notes:
    """What the oracle remembers; zones and tiles as (x, y)."""

    swept: frozenset[Tile] = frozenset()
    go: Tile | None = None
    sweep: int = 0
    seen: tuple[tuple[Animal, Tile], ...] = ()
    walls: tuple[Tile, ...] = ()


def tile_name(tile: Tile) -> str:
    """Column letter and row digit: (5, 5) in a view is f5."""
    return f"{chr(ord('a') + tile[0])}{tile[1]}"


def named_tile(name: str) -> Tile:
    return ord(name[0]) - ord("a"), int(name[1:])


def zone_counts(width: int, height: int) -> Tile:
    """Columns and rows of zones."""
    return -(-width // VIEW), -(-height // VIEW)


def write_notes(notes: Notes, width: int, height: int) -> str:
    zones = zone_counts(width, height)
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


def read_notes(text: str, width: int, height: int) -> Notes | None:
    """The notes in this form; None for any other text, which whoever held the notepad before may have left."""
    lines = dict(line.split(" ", 1) for line in text.split("\n") if " " in line)
    rows, go, sweep = lines.get("Map", "").split(), lines.get("Go", ""), lines.get("Sweep", "")
    notes = Notes(
        swept=frozenset((x, y) for y, row in enumerate(rows) for x, mark in enumerate(row) if mark == "V"),
        go=named_tile(go) if TILE_NAME.fullmatch(go) else None,
        sweep=int(sweep) if re.fullmatch(r"[0-9]{1,3}", sweep) else 0,
        seen=tuple(
            (animal, (int(x), int(y)))
            for name, x, y in SEEN.findall(lines.get("Seen", ""))
            if (animal := resolve_target(name))
        ),
        walls=tuple((int(x), int(y)) for x, y in WALL.findall(lines.get("Walls", ""))),
    )
    zones = [*notes.swept, *([notes.go] if notes.go else [])]
    places = [*(place for _, place in notes.seen), *notes.walls]
    is_inside = _all_below(zones, zone_counts(width, height)) and _all_below(places, (width, height))
    return notes if is_inside and write_notes(notes, width, height) == text else None


def _all_below(tiles: list[Tile], size: Tile) -> bool:
    return all(x < size[0] and y < size[1] for x, y in tiles)
