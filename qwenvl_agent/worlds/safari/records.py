"""dataset.jsonl both ways: one turn a line, pictures beside it in `images/`.

Two published forms are read: `image_file` with lists, and `image` with JSON strings. A line that cannot be learned from
becomes a `Reject` that says why and what to do; every other line stands alone, as it has its whole context.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qwenvl_agent.json_input import fault_of_line, read_json, read_line
from qwenvl_agent.schema import (
    ConfinedFolder,
    Observation,
    Picture,
    Step,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    tool_named,
)
from qwenvl_agent.worlds.safari.thoughts import generate_thought
from qwenvl_agent.worlds.safari.tools import TOOLS, argument_error

MAX_TURN = 10**9
SPEAKS_OF_CATCH = re.compile(r"\bcatch\b", re.IGNORECASE)


@dataclass(frozen=True)
class RecordedRow:
    """One recorded turn; `source` is `file:line`, `thought_derived` says that the thought is not the recorded one."""

    episode_id: str
    turn_index: int
    mission: str
    system_prompt: str
    tools: tuple[Tool, ...]
    step: Step
    source: str
    thought_derived: bool


@dataclass(frozen=True)
class Reject:
    """A line that gave no row: `file:line`, and value, consequence, remedy."""

    source: str
    message: str


def read_rows(
    path: Path, *, tools: tuple[Tool, ...] | None = None, max_thought_chars: int = 400
) -> Iterator[RecordedRow | Reject]:
    """Every line of a dataset in file order, one at a time; `path` is the file or its folder.

    `tools` default to those of the rule set that the episode was played by: `catch` if any of its rows calls catch or
    its system prompt speaks of it, else `reach`. A thought that is missing or longer than `max_thought_chars` is
    derived from the state and the calls.
    """
    path = Path(path)
    path = path / "dataset.jsonl" if path.is_dir() else path
    catching = episodes_that_catch(path) if tools is None else frozenset()
    folder = ConfinedFolder(path.parent)
    for source, line in _lines(path):
        try:
            values = _load(line)
            is_catch = _text(values, "episode_id") in catching or _speaks_of_catch(_text(values, "system_prompt"))
            row_tools = tools or TOOLS["catch" if is_catch else "reach"]
            yield _read_row(values, folder, source, row_tools, max_thought_chars)
        except Exception as error:
            yield Reject(source, fault_of_line(error))


@lru_cache(maxsize=64)  # a dataset has few, and long ones
def _speaks_of_catch(system_prompt: str) -> bool:
    return bool(SPEAKS_OF_CATCH.search(system_prompt))


def episodes_that_catch(path: Path) -> frozenset[str]:
    """Ids of the episodes with a call of catch in any row, wherever in the file its rows stand."""
    found = set()
    for _, line in _lines(path):
        if b"catch" in line:
            try:
                values = _load(line)
                if any(call["name"] == "catch" for call in _list_of(values, "tool_calls")):
                    found.add(str(values.get("episode_id")))
            except Exception:
                continue  # the reading pass reports it
    return frozenset(found)


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """`file:line` and content of every line that is not blank."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", line


def _load(line: bytes) -> dict:
    values = read_line(line)
    if not isinstance(values, dict):
        raise ValueError(f"{type(values).__name__} instead of an object: the line is skipped; write one object a line")
    return values


def _read_row(
    values: dict, folder: ConfinedFolder, source: str, tools: tuple[Tool, ...], max_thought_chars: int
) -> RecordedRow:
    turn_index = values.get("turn")
    if not isinstance(turn_index, int) or isinstance(turn_index, bool) or not 0 <= turn_index <= MAX_TURN:
        raise ValueError(f"turn is {turn_index!r}: the row has no place in its episode; write its index from 0")
    text = _text(values, "context_text")
    calls = _read_calls(values, tools)
    results = _read_results(values, calls)
    thought = values.get("thought_text") or ""
    if not isinstance(thought, str):
        raise ValueError(f"thought_text is {str(thought)[:80]!r}: not text; write text or null")
    is_derived = not thought.strip() or len(thought) > max_thought_chars
    if is_derived:
        thought = generate_thought(text, calls, results)
    return RecordedRow(
        episode_id=_text(values, "episode_id"),
        turn_index=turn_index,
        mission=_text(values, "mission"),
        system_prompt=_text(values, "system_prompt"),
        tools=tools,
        step=Step(Observation(text, (_read_picture(values, folder),)), Turn(thought, calls), results),
        source=source,
        thought_derived=is_derived,
    )


def _text(values: dict, key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {str(value)[:80]!r}: the row cannot be placed or shown; write it as text")
    return value


def _list_of(values: dict, key: str) -> list:
    """A list, or the list that a JSON string holds; missing counts as empty."""
    value = values.get(key)
    if isinstance(value, str):
        try:
            value = read_json(value)
        except ValueError as error:
            raise ValueError(f"{key} is a string that is {error}") from None
    if not isinstance(value or [], list):
        raise ValueError(f"{key} is {str(value)[:80]!r}: not a list; write a list of objects")
    return value or []


def _read_calls(values: dict, tools: tuple[Tool, ...]) -> tuple[ToolCall, ...]:
    """The row's calls; ValueError for any that must not be taught."""
    calls = []
    for i, item in enumerate(_list_of(values, "tool_calls")):
        place = f"tool_calls[{i}]"
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ValueError(f'{place} is {str(item)[:80]!r}: not a call; write {{"name": ..., "args": {{...}}}}')
        if tool_named(tools, item["name"]) is None:
            known = ", ".join(tool.name for tool in tools)
            raise ValueError(
                f"{place}.name {item['name'][:80]!r} is not a safari tool: it would teach a call that fails; "
                f"use one of {known}"
            )
        call = ToolCall(item["name"], {} if item.get("args") is None else item["args"])
        error = argument_error(call)
        if error:
            raise ValueError(
                f"{place}.args do not fit: {error}; it would teach a call that fails; correct the arguments"
            )
        calls.append(call)
    if not calls:
        raise ValueError("tool_calls is empty: the turn has nothing to learn; drop the row")
    return tuple(calls)


def _read_results(values: dict, calls: tuple[ToolCall, ...]) -> tuple[ToolResult, ...]:
    """The results of the first calls, in their order; an episode that ended leaves the rest without."""
    results = []
    for i, item in enumerate(_list_of(values, "tool_results")):
        if not isinstance(item, dict) or not isinstance(item.get("result"), dict):
            raise ValueError(
                f'tool_results[{i}] is {str(item)[:80]!r}: not a result; write {{"name": ..., "result": {{}}}}'
            )
        if i >= len(calls) or item.get("name") != calls[i].name:
            expected = calls[i].name if i < len(calls) else "no further result"
            raise ValueError(
                f"tool_results[{i}] is of {item.get('name')!r}, expected {expected}: a result without its call cannot "
                "be placed; put results in the order of the calls"
            )
        results.append(ToolResult(item["name"], item["result"]))
    return tuple(results)


def _read_picture(values: dict, folder: ConfinedFolder) -> Picture:
    """The row's picture with its size from the file's header; no pixel is decoded."""
    key = "image_file" if values.get("image_file") else "image"
    value = values.get(key)
    if isinstance(value, dict):
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {str(value)[:80]!r}: no file is named; save the picture and name its file")
    return Picture.from_file(folder.path(value), f"{key} {value!r}")


def row_json(
    *,
    episode_id: str,
    mission: str,
    turn_index: int,
    system_prompt: str,
    context_text: str,
    image_file: str,
    turn: Turn,
    results: tuple[ToolResult, ...],
) -> dict:
    """One line of dataset.jsonl, in the recorded form and key order."""
    return {
        "episode_id": episode_id,
        "mission": mission,
        "turn": turn_index,
        "system_prompt": system_prompt,
        "context_text": context_text,
        "image_file": image_file,
        "tool_calls": [{"name": call.name, "args": call.arguments} for call in turn.tool_calls],
        "tool_results": [{"name": result.name, "result": result.content} for result in results],
        "thought_text": turn.thought or None,
        "raw_request": None,
        "raw_response": None,
    }


class RowWriter:
    """Writes a dataset folder: dataset.jsonl and images/ep_<episode>_turn_<index>.png."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        self.file = open(self.folder / "dataset.jsonl", "w", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, png: bytes, *, episode_id: str, turn_index: int, **row):
        """Write one row and its picture; `row` holds the other arguments of `row_json`."""
        image_file = f"images/ep_{episode_id}_turn_{turn_index:03d}.png"
        (self.folder / image_file).write_bytes(png)
        values = row_json(episode_id=episode_id, turn_index=turn_index, image_file=image_file, **row)
        self.file.write(json.dumps(values, ensure_ascii=False) + "\n")
