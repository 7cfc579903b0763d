"""Reading what models and people write takes time in proportion to its length, whatever fragment is repeated in it."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TOOLS

from qwenvl_agent.computer.dialect_text import split_thought
from qwenvl_agent.computer.dialects import read
from qwenvl_agent.containers import Record
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.curation.convert import convert
from qwenvl_agent.data.readers.chat import read_conversation
from qwenvl_agent.evaluation.elements import read_list
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.picture_store import PictureFolder
from qwenvl_agent.worlds.safari.context import read_context
from qwenvl_agent.worlds.safari.judge import planned
from qwenvl_agent.worlds.safari.missions import read_mission
from qwenvl_agent.worlds.safari.notepad import read_notes

SIZE = 2**16
MAX_SECONDS = 1.0
"""Of this process, for SIZE characters on a slow core; what was cubic took hours, what was quadratic ten seconds."""
SCREEN = Screen(1280, 720)
HEAD = "Mission: x\nStep: 1/2\nPosition: (1, 2)\n"

WORDS = (
    *("Thought:", "Action:", "thought: ", "action: ", "Plan ", "CLICK ", "SCROLL [", "TYPE ", "instruction: "),
    *("previous actions:", "step 1:", "move(", "x=", "click(", "null", "True", "NaN", "1e", "0.", '{"name":'),
    *(
        '"arguments":',
        "{'name':",
        "[1,",
        "(1,",
        "(1 ",
        "red ",
        "tiger ",
        "the ",
        "빨간",
        "호랑이",
        "红色",
        "的",
        "背景",
    ),
)
TAGS = (
    *("<tool_call>", "</tool_call>", "<tool_response>", "<think>", "</think>", "<|im_end|>", "<image>", "<point>"),
    *("</point>", "<|box_start|>", "<ref>", "</ref>", "<box>[[", "]]</box>", "```"),
)
SPACES = (" ", "\n", "\t", "\r", "\x0b", "\x1c", "\u3000")
MARKS = (*"a1.-,;:()[]{}<>|'\"\\`=/#*_+%", "\u0303", "é", "🐯", "\ud800", "\0")
FRAGMENTS = (*WORDS, *TAGS, *SPACES, *MARKS)
STARTS = (
    *("Thought: a", "Action: move(", "Action: move(x=", "<tool_call>", '<tool_call>{"name": "move", "arguments": {'),
    *(
        "<tool_call>{'name': 'move', 'arguments': {'a':",
        "(1",
        "[",
        "CLICK ",
        "Plan ",
        "instruction: a",
        "<ref>a",
        "red",
    ),
    *("```\n", "'", '"', "- action", "click(x=", "빨간", HEAD, HEAD + "Found Targets: x\n"),
)
KNOWN = (
    ("Thought: a", "\n", "!"),
    ("Thought: a", " ", "!"),
    ("<tool_call>", " ", ""),
    ("<tool_call>", "\n", "</tool_call"),
    ("instruction: a", "\t", "!"),
    ("", "<ref>", "</ref>"),
    ("", "<ref></ref>", ""),
    ("", "<ref></ref><box>[[", ""),
    ("", "Plan ", ".!"),
    ("", "\n", "CLIC"),
    ("CLICK ", "[", ""),
    ("(1", "1", "!"),
    ("(1", " ", "!"),
    ("(", "1 ", "!"),
    ("```", "a", ""),
    ("```", "\n", ""),
    ("", '{"a":', ""),
    ("", "{", ""),
    ("Action: ", "move()", ""),
    ("Action: move(", "x='',", ""),
)
"""Beginning, fragment, end: what took quadratic or cubic time, and its like."""


def say(role: str, text: str) -> None:
    user, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    call = {"role": "assistant", "tool_calls": [{"name": "a", "arguments": {}}]}
    messages = {
        "user": [{"role": "user", "content": text}, answer],
        "assistant": [user, {"role": "assistant", "content": text}],
        "tool": [user, call, {"role": "tool", "content": text}, answer],
    }[role]
    list(read_conversation(Record("chat.jsonl:1", {"messages": messages}), PictureFolder(Path())))


def converted(layout: str, tmp_path, *said: str) -> None:
    names = [name for _, name in zip(said, ("human", "gpt"), strict=False)]
    conversation = [{"from": name, "value": text} for name, text in zip(names, said, strict=True)]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"conversations": conversation, "image": "gone.png"}))
    list(convert(path, layout, tmp_path))


READERS: dict[str, Callable] = {
    **{name: lambda text, _, fmt=fmt: fmt.parse(text, TOOLS) for name, fmt in FORMATS.items()},
    "dialect": lambda text, _: read(text, SCREEN, "px"),
    "dialect's thought": lambda text, _: split_thought(text),
    "dialect's place": lambda text, _: read({"action": "click", "coordinate": text}, SCREEN, "px"),
    "dialect's keys": lambda text, _: read({"action": "key", "keys": text}, SCREEN, "px"),
    "user": lambda text, _: say("user", text),
    "assistant": lambda text, _: say("assistant", text),
    "tool": lambda text, _: say("tool", text),
    "aguvis": lambda text, folder: converted("aguvis", folder, text, text),
    "os_atlas": lambda text, folder: converted("os_atlas", folder, text),
    "mission": lambda text, _: read_mission(text),
    "context": lambda text, _: read_context(text),
    "notepad": lambda text, _: read_notes(text, 50, 50),
    "plan": lambda text, _: planned(text),
    "list of elements": lambda text, _: read_list(text, SCREEN),
}


def seconds(reader: str, text: str, folder) -> float:
    started = time.process_time()
    with contextlib.suppress(ValueError):
        READERS[reader](text, folder)
    return time.process_time() - started


def repeated(start: str, fragment: str, end: str, size: int = SIZE) -> str:
    return start + fragment * (size // len(fragment)) + end


@pytest.mark.parametrize("reader", READERS)
def test_every_fragment(reader, tmp_path):
    taken = {fragment: seconds(reader, repeated("", fragment, ""), tmp_path) for fragment in FRAGMENTS}
    assert max(taken.values()) < MAX_SECONDS, max(taken, key=taken.get)


@pytest.mark.parametrize("reader", READERS)
def test_what_took_for_ever(reader, tmp_path):
    taken = {case: seconds(reader, repeated(*case), tmp_path) for case in KNOWN}
    assert max(taken.values()) < MAX_SECONDS, max(taken, key=taken.get)


@pytest.mark.slow
@pytest.mark.parametrize("reader", [*FORMATS, "dialect", "user", "assistant", "plan"])
def test_every_fragment_behind_every_beginning_and_beside_every_other(reader, tmp_path):
    beginnings = [(start, fragment, "!") for start in STARTS for fragment in FRAGMENTS]
    pairs = [("", first + second, "!") for first in FRAGMENTS for second in FRAGMENTS]
    for case in beginnings + pairs:
        taken = seconds(reader, repeated(*case, SIZE // 32), tmp_path)
        if taken > MAX_SECONDS / 200:  # quadratic growth is 1024 times that
            taken = seconds(reader, repeated(*case), tmp_path)
            assert taken < MAX_SECONDS, case
