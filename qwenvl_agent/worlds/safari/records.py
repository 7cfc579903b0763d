"""The safari's recordings: which tools an episode was played with, and thoughts where none were recorded.

Two published forms are read: `image_file` with lists, and `image` with JSON strings.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from qwenvl_agent.json_input import Reject
from qwenvl_agent.schema import Tool
from qwenvl_agent.worlds import recording
from qwenvl_agent.worlds.recording import RecordedRow, data_file, lines_of, list_of, load_object, text_of
from qwenvl_agent.worlds.safari.thoughts import generate_thought
from qwenvl_agent.worlds.safari.tools import TOOLS, argument_error

SPEAKS_OF_CATCH = re.compile(r"\bcatch\b", re.IGNORECASE)


def read_rows(
    path: Path, *, tools: tuple[Tool, ...] | None = None, max_thought_chars: int = 400
) -> Iterator[RecordedRow | Reject]:
    """Every line of a dataset in file order, one at a time; `path` is the file or its folder.

    `tools` default to those of the rule set that the episode was played by: `catch` if any of its rows calls catch or
    its system prompt speaks of it, else `reach`. A thought that is missing or longer than `max_thought_chars` is
    derived from the state and the calls.
    """
    path = data_file(path)
    catching = episodes_that_catch(path) if tools is None else frozenset()

    def tools_of(values: dict) -> tuple[Tool, ...]:
        is_catch = text_of(values, "episode_id") in catching or _speaks_of_catch(text_of(values, "system_prompt"))
        return tools or TOOLS["catch" if is_catch else "reach"]

    return recording.read_rows(
        path,
        recording.Reading(
            tools_of=tools_of,
            world="safari",
            fault_of=lambda tool, call: argument_error(call),
            derive_thought=generate_thought,
            max_thought_chars=max_thought_chars,
        ),
    )


@lru_cache(maxsize=64)  # a dataset has few, and long ones
def _speaks_of_catch(system_prompt: str) -> bool:
    return bool(SPEAKS_OF_CATCH.search(system_prompt))


def episodes_that_catch(path: Path) -> frozenset[str]:
    """Ids of the episodes with a call of catch in any row, wherever in the file its rows stand."""
    found = set()
    for _, line in lines_of(path):
        if b"catch" in line:
            try:
                values = load_object(line)
                if any(call["name"] == "catch" for call in list_of(values, "tool_calls")):
                    found.add(str(values.get("episode_id")))
            except Exception:
                continue  # the reading pass reports it
    return frozenset(found)
