"""Recorded turns of any world (`worlds.recording`): the tools come with the recording, so no world need be there.

The tools of a row are its own `tools`, else those of tools.json or manifest.json beside the file, else those of the world
that the manifest (or the source's `world`) names. A world that reads its recordings itself is asked for by `world`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from qwenvl_agent.data.source import Reject, SourceRow
from qwenvl_agent.json_input import read_json
from qwenvl_agent.schema import Tool
from qwenvl_agent.tool_schema import check_schema
from qwenvl_agent.worlds import make_world, recording
from qwenvl_agent.worlds.recording import Reading, RecordedRow
from qwenvl_agent.worlds.world import World

VERSION = 1
"""Of the rows that a file gives; see `readers.Reader`. A world that reads its own states `recording_version` besides."""


def read_rows(path: Path, *, world: str = "", max_thought_chars: int = 400) -> Iterator[SourceRow | Reject]:
    """Every line of a dataset in file order; `world`, by name or path, has the last word on how it is read."""
    path = recording.data_file(path)
    items = None
    if world:
        items = _named_world(world, path).read_recording(path, max_thought_chars)
    if items is None:
        reading = Reading(tools_of=_tools_of(path, world), max_thought_chars=max_thought_chars)
        items = recording.read_rows(path, reading)
    yield from map(to_source_row, items)


def to_source_row(row: RecordedRow | Reject) -> SourceRow | Reject:
    if isinstance(row, Reject):
        return row
    return SourceRow(
        episode_id=row.episode_id,
        turn_index=row.turn_index,
        split_key=row.episode_id,
        system_prompt=row.system_prompt,
        tools=row.tools,
        step=row.step,
        source=row.source,
        notes=("thought_derived",) if row.thought_derived else (),
    )


def digest_beside(path: Path, world: str = "") -> str:
    """Of the tools that stand beside the file or in a world's code, and of the world's version: with others its rows are
    others."""
    tools, _ = tools_beside(recording.data_file(path), world)
    facts = [version_of(world) if world else "", *(tool.to_json() for tool in tools)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def version_of(world: str) -> str:
    return f"{world} {make_world(world).recording_version}"


def tools_beside(path: Path, world: str = "") -> tuple[tuple[Tool, ...], str]:
    """The tools that a recording's rows have by default, and where they are from; none if nothing names any."""
    if world:
        return _tools_of_world(_named_world(world, path)), world
    for name in ("tools.json", "manifest.json"):
        values = _read_beside(path, name)
        found = values.get("tools") if isinstance(values, dict) else values
        if found:
            return _checked(found, str(path.parent / name)), name
    values = _read_beside(path, "manifest.json")
    if isinstance(values, dict) and isinstance(values.get("world"), str):
        return _tools_of_world(_named_world(values["world"], path)), values["world"]
    return (), ""


def _tools_of_world(world: World) -> tuple[Tool, ...]:
    env = world.make_env()
    try:
        return tuple(env.tools)
    finally:
        env.close()


def _named_world(name: str, path: Path) -> World:
    """The world under the rules of the manifest."""
    values = _read_beside(path, "manifest.json")
    rules = values.get("rules") if isinstance(values, dict) else None
    return make_world(name, rules if isinstance(rules, dict) else {})


def _read_beside(path: Path, name: str) -> object:
    file = path.parent / name
    if not file.is_file():
        return None
    try:
        return read_json(file.read_text(encoding="utf-8-sig"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}; the recording's tools are not known without it") from None


def _tools_of(path: Path, world: str) -> Callable[[dict], tuple[Tool, ...]]:
    shared, _ = tools_beside(path, world)

    @lru_cache(maxsize=256)
    def of_text(text: str) -> tuple[Tool, ...]:
        return _checked(json.loads(text), "tools")

    def tools_of(values: dict) -> tuple[Tool, ...]:
        own = recording.list_of(values, "tools")
        tools = of_text(json.dumps(own)) if own else shared
        if not tools:
            raise ValueError(
                f"the row has no tools, and neither tools.json nor manifest.json beside {path.name} names any: no call could "
                "be checked or offered; write the list of tools, in OpenAI's form, into tools.json"
            )
        return tools

    return tools_of


def _checked(entries: object, place: str) -> tuple[Tool, ...]:
    if not isinstance(entries, list):
        raise ValueError(f"{place} is {str(entries)[:80]!r}: not a list of tools; write one in OpenAI's form")
    tools = []
    for i, entry in enumerate(entries):
        try:
            tool = Tool.from_json(entry)
            check_schema(tool.parameters)
        except (KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{place}[{i}] is {str(entry)[:80]!r}: not a tool; write "
                '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
            ) from None
        except ValueError as error:
            raise ValueError(f"{place}[{i}]: {error}") from None
        tools.append(tool)
    return tuple(tools)
