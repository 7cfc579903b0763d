"""The safari's recordings: which tools an episode was played with, and thoughts where none were recorded.

Two published forms are read: `image_file` with lists, and `image` with JSON strings.
"""

import re
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache

from qwenvl_agent.containers import Record
from qwenvl_agent.json_input import Reject
from qwenvl_agent.picture_store import PictureFolder
from qwenvl_agent.schema import Tool
from qwenvl_agent.worlds import recording
from qwenvl_agent.worlds.recording import RecordedRow, list_of, load_object, text_of
from qwenvl_agent.worlds.safari.thoughts import generate_thought
from qwenvl_agent.worlds.safari.tools import TOOLS, argument_error

SPEAKS_OF_CATCH = re.compile(r"\bcatch\b", re.IGNORECASE)


def row_reader(
    folder: PictureFolder,
    *,
    catching: Collection[str] = (),
    tools: tuple[Tool, ...] | None = None,
    max_thought_chars: int = 400,
) -> Callable[[Record], RecordedRow | Reject]:
    """What makes a row of each record of a dataset.

    `tools` default to those of the rule set that the episode was played by: `catch` if it is among the episodes `catching`
    or its system prompt speaks of it, else `reach`. A thought that is missing or longer than `max_thought_chars` is
    derived from the state and the calls.
    """

    def tools_of(values: dict) -> tuple[Tool, ...]:
        is_catch = text_of(values, "episode_id") in catching or _speaks_of_catch(text_of(values, "system_prompt"))
        return tools or TOOLS["catch" if is_catch else "reach"]

    reading = recording.Reading(
        tools_of=tools_of,
        world="safari",
        fault_of=lambda tool, call: argument_error(call),
        derive_thought=generate_thought,
        max_thought_chars=max_thought_chars,
    )
    return recording.row_reader(folder, reading)


@lru_cache(maxsize=64)  # a dataset has few, and long ones
def _speaks_of_catch(system_prompt: str) -> bool:
    return bool(SPEAKS_OF_CATCH.search(system_prompt))


def episodes_that_catch(records: Iterable[Record]) -> frozenset[str]:
    """Ids of the episodes with a call of catch in any row, wherever in the file its rows stand."""
    found = set()
    for record in records:
        if not isinstance(record.content, bytes) or b"catch" in record.content:
            try:
                values = load_object(record)
                if any(call["name"] == "catch" for call in list_of(values, "tool_calls")):
                    found.add(str(values.get("episode_id")))
            except Exception:
                continue  # the reading pass reports it
    return frozenset(found)
