"""Recorded turns of any world (`worlds.recording`): the tools come with the recording, so no world need be there.

The tools of a row are its own `tools`, else those of tools.json or manifest.json beside the file, else those of the world
that the manifest (or the source's `world`) names. A world that reads its recordings itself is asked for by `world`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from qwenvl_agent.containers import Record, data_files
from qwenvl_agent.data.source import Origin, Reject, SourceRow
from qwenvl_agent.files import check_plain_file, confined_path
from qwenvl_agent.json_input import read_json
from qwenvl_agent.schema import Tool
from qwenvl_agent.tool_schema import check_schema
from qwenvl_agent.worlds import known_worlds, make_world, recording
from qwenvl_agent.worlds.recording import Reading, RecordedRow
from qwenvl_agent.worlds.world import World

MAX_BYTES_BESIDE = 16 * 2**20
"""Of tools.json and manifest.json."""
VERSION = 2
"""Of the rows that a file gives; see `readers.Reader`. A world that reads its own states `recording_version` besides."""


def open_reader(origin: Origin) -> Callable[[Record], Iterable[SourceRow | Reject]]:
    """What reads a record; the source's `world`, by name or path, has the last word on how it is read."""
    folder, max_thought_chars, read = origin.folder, origin.data_cfg.max_thought_chars, None
    world = _own_world(origin)
    if world is not None:
        read = world.recording_reader(folder, max_thought_chars, origin.surveyed)
    if read is None:
        reading = Reading(tools_of=_tools_of(folder.root, origin.cfg.world), max_thought_chars=max_thought_chars)
        read = recording.row_reader(folder, reading)
    return lambda record: (to_source_row(read(record)),)


def survey(records: Iterable[Record], origin: Origin) -> object:
    """What the source's world must know of all records first."""
    world = _own_world(origin)
    return None if world is None else world.survey_recording(records)


def _own_world(origin: Origin) -> World | None:
    if origin.cfg.kind == "safari":
        return make_world("safari")
    return _named_world(origin.cfg.world, origin.folder.root) if origin.cfg.world else None


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
    tools, _ = tools_beside(data_files(path)[0].parent, world)
    facts = [version_of(world) if world else "", *(tool.to_json() for tool in tools)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def version_of(world: str) -> str:
    return f"{world} {make_world(world).recording_version}"


def tools_beside(folder: Path, world: str = "") -> tuple[tuple[Tool, ...], str]:
    """The tools that a recording's rows have by default, and where they are from; none if nothing names any."""
    if world:
        return _tools_of_world(_named_world(world, folder)), world
    for name in ("tools.json", "manifest.json"):
        values = _read_beside(folder, name)
        found = values.get("tools") if isinstance(values, dict) else values
        if found:
            return _checked(found, str(folder / name)), name
    values = _read_beside(folder, "manifest.json")
    if isinstance(values, dict) and isinstance(values.get("world"), str):
        _refuse_code(values["world"], folder)
        return _tools_of_world(_named_world(values["world"], folder)), values["world"]
    return (), ""


def _refuse_code(world: str, folder: Path) -> None:
    """ValueError for a world in a file: data that come from elsewhere must not say which code is run."""
    if world not in known_worlds():
        raise ValueError(
            f"{folder / 'manifest.json'} names no tools, and the world {world[:200]!r}, whose code would be run to ask it for "
            "them: data are not trusted with that; if you do trust it, name it in the source (data.sources[].world), or "
            "write the tools into tools.json"
        )


def _tools_of_world(world: World) -> tuple[Tool, ...]:
    env = world.make_env()
    try:
        return tuple(env.tools)
    finally:
        env.close()


def _named_world(name: str, folder: Path) -> World:
    """The world under the rules of the manifest."""
    values = _read_beside(folder, "manifest.json")
    rules = values.get("rules") if isinstance(values, dict) else None
    return make_world(name, rules if isinstance(rules, dict) else {})


def _read_beside(folder: Path, name: str) -> object:
    file = folder / name
    if not file.is_file():
        return None
    try:
        file = confined_path(folder, name)
        check_plain_file(file, MAX_BYTES_BESIDE)
        return read_json(file.read_text(encoding="utf-8-sig"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}; the recording's tools are not known without it") from None


def _tools_of(folder: Path, world: str) -> Callable[[dict], tuple[Tool, ...]]:
    shared, _ = tools_beside(folder, world)

    @lru_cache(maxsize=256)
    def of_text(text: str) -> tuple[Tool, ...]:
        return _checked(json.loads(text), "tools")

    def tools_of(values: dict) -> tuple[Tool, ...]:
        own = recording.list_of(values, "tools")
        tools = of_text(json.dumps(own)) if own else shared
        if not tools:
            raise ValueError(
                "the row has no tools, and neither tools.json nor manifest.json beside the file names any: no call could "
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
