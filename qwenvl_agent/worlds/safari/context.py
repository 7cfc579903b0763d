"""The text beside the picture, written and read back."""

import re
from dataclasses import dataclass

from qwenvl_agent.worlds.safari.world import Tile

CONTEXT = re.compile(
    r"Mission: (?P<mission>.*)\n"
    r"Step: (?P<step>\d+)/(?P<max_turns>\d+)\n"
    r"Position: \((?P<x>\d+), ?(?P<y>\d+)\)\n"
    r"\s*\n?Found Targets: (?P<found>.*)\n"
    r"\s*\n?Notepad:[ \n](?P<notepad>[\s\S]*)"
)


@dataclass(frozen=True)
class Context:
    """What a turn's text says; `step` counts from 1, `found` and `notepad` are empty where nothing stands."""

    mission: str
    step: int
    max_turns: int
    position: Tile
    found: str
    notepad: str


def context_text(mission: str, step: int, max_turns: int, position: Tile, found: str, notepad: str) -> str:
    """The text beside the picture; a mission's and the found targets' line breaks become spaces."""
    return (
        f"Mission: {' '.join(mission.split())}\nStep: {step}/{max_turns}\nPosition: ({position[0]}, {position[1]})\n\n"
        f"Found Targets: {' '.join(found.split()) or '(none)'}\n\nNotepad:\n{notepad or '(empty)'}"
    )


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
    )
