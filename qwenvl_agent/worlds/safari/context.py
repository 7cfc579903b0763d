"""The text beside the picture, written and read back."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl_agent.schema import ToolResult
from qwenvl_agent.worlds.safari.notepad import named_tile, tile_name
from qwenvl_agent.worlds.safari.world import Tile, in_view

CONTEXT = re.compile(
    r"Mission: (?P<mission>.*)\n"
    r"Step: (?P<step>\d+)/(?P<max_turns>\d+)\n"
    r"Position: \((?P<x>\d+), ?(?P<y>\d+)\)\n"
    r"(?:Last: (?P<last>.*)\n)?"
    r"\s*\n?Found Targets: (?P<found>.*)\n"
    r"\s*\n?Notepad:[ \n](?P<notepad>[\s\S]*)"
)

NOTHING_YET = "(none)"
"""Before the first turn."""
BLOCKED = re.compile(r"\bblocked by [a-z]+ ([a-j][0-9])$")
SAID = {"update_notepad": "noted", "declare_found": "declared", "declare_done": "done"}


@dataclass(frozen=True)
class Context:
    """What a turn's text says; `step` counts from 1, `found` and `notepad` are empty where nothing stands.

    `last` says what the turn before did, in the words of `last_turn`; None where the text has no such line.
    """

    mission: str
    step: int
    max_turns: int
    position: Tile
    found: str
    notepad: str
    last: str | None = None

    @property
    def blocked(self) -> Tile | None:
        """The view tile that stopped the last walk, in this turn's view; None if nothing in view did."""
        match = BLOCKED.search(self.last or "")
        return named_tile(match[1]) if match else None


def context_text(
    mission: str, step: int, max_turns: int, position: Tile, found: str, notepad: str, last: str | None = None
) -> str:
    """The text beside the picture; a mission's and the found targets' line breaks become spaces.

    Without `last` it has the wording of the published recordings.
    """
    told = "" if last is None else f"Last: {last}\n"
    return (
        f"Mission: {' '.join(mission.split())}\nStep: {step}/{max_turns}\nPosition: ({position[0]}, {position[1]})\n{told}\n"
        f"Found Targets: {' '.join(found.split()) or '(none)'}\n\nNotepad:\n{notepad or '(empty)'}"
    )


def last_turn(before: Tile, results: Sequence[ToolResult], corner: Tile) -> str:
    """What a turn did, from its results alone: `moved, blocked by tree f4`, `caught nothing, declared`.

    `before` is the place where the turn began, `corner` that of the view that is now shown: what blocked is named by
    its tile there. Whether a declaration was right is not told, as the game does not tell it.
    """
    places = [result.content["pos"] for result in results if "pos" in result.content]
    is_elsewhere = bool(places) and (places[-1]["x"], places[-1]["y"]) != before
    parts = ["moved"] if is_elsewhere else []
    parts += [said for result in results if result.name != "move" and (said := _said(result)) not in parts]
    walks = [result for result in results if result.name == "move"]
    refused = [_said(result) for result in walks if "pos" not in result.content]
    blocker = walks[-1].content.get("blocker") if walks else None
    return ", ".join([*parts, *refused[:1], *([_blocked(blocker, corner)] if blocker else [])]) or "stood"


def _said(result: ToolResult) -> str:
    status = result.content.get("status")
    if status in ("unknown_tool", "invalid_arguments"):
        return "call refused"
    if status == "no_tool_call":
        return "no call"
    if result.name == "catch":
        return "caught" if result.content["success"] else "caught nothing"
    return SAID[result.name]


def _blocked(blocker: dict, corner: Tile) -> str:
    place = (blocker["x"], blocker["y"])
    name = f" {tile_name((place[0] - corner[0], place[1] - corner[1]))}" if in_view(place, corner) else ""
    return f"blocked by {blocker['is']}{name}"


def read_context(text: str) -> Context:
    """The parts of a context text; ValueError if it has another form."""
    match = CONTEXT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"context text {text[:80]!r}... lacks a line of Mission, Step, Position, Found Targets, Notepad: the state "
            "cannot be read; give the text in the recorded form"
        )
    parts = match.groupdict()
    return Context(
        mission=parts["mission"],
        step=int(parts["step"]),
        max_turns=int(parts["max_turns"]),
        position=(int(parts["x"]), int(parts["y"])),
        found="" if parts["found"] == "(none)" else parts["found"],
        notepad="" if parts["notepad"] == "(empty)" else parts["notepad"],
        last=parts["last"],
    )
