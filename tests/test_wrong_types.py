"""Every field of every kind with values of wrong types: a reject that somebody foresaw, or a row; and counts that add up."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from qwenvl_agent.config import DataConfig, SourceConfig
from qwenvl_agent.data.readers import read_rows
from qwenvl_agent.data.source import Reject

WRONG = [
    None,
    5,
    -1,
    1.5,
    "",
    "x",
    [],
    {},
    [[]],
    [{}],
    {"a": 1},
    True,
    False,
    "\ud800",
    [None],
    10**30,
    10**400,
    "null",
    "[]",
    "../a.png",
]
GONE = object()
CLICK = {
    "type": "function",
    "function": {
        "name": "click",
        "description": "Click.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
            "required": ["x", "y"],
        },
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "click", "arguments": {"x": 20, "y": 12}}}
STATE = "Mission: find the red tiger\nStep: 1/40\nPosition: (5, 5)\n\nFound Targets: (none)\n\nNotepad:\n(empty)"
RECORDS = {
    "computer": {
        "instruction": "open",
        "screenshot": "a.png",
        "image_size": [64, 48],
        "action": {"action": "click", "x": 20, "y": 25, "reasoning": "It is there.", "target": "menu"},
        "box": [10, 10, 40, 40],
        "split": "train",
        "details": {"kind": "icon", "hit_boxes": [[10, 10, 40, 40]]},
        "episode_id": "e",
        "step": 0,
        "history": ["left_click"],
        "actions": ["left_click"],
        "group": "site",
        "id": "1",
    },
    "chat": {
        "id": "a",
        "images": ["a.png"],
        "tools": [CLICK],
        "messages": [
            {"role": "system", "content": "You click."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Open it."}]},
            {"role": "assistant", "content": "I see it.", "weight": 1, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "{}"},
            {"role": "assistant", "content": "It is open."},
        ],
        "label": True,
        "score": 1,
    },
    "recorded": {
        "episode_id": "e",
        "mission": "open it",
        "turn": 0,
        "system_prompt": "You click.",
        "context_text": "Mission: open it",
        "images": ["a.png"],
        "tools": [CLICK],
        "tool_calls": [{"name": "click", "args": {"x": 1, "y": 2}}],
        "tool_results": [{"name": "click", "result": {"status": "ok"}}],
        "thought_text": "It is there.",
    },
    "safari": {
        "episode_id": "e",
        "mission": "find the red tiger",
        "turn": 0,
        "system_prompt": "You play.",
        "context_text": STATE,
        "image_file": "a.png",
        "tool_calls": [{"name": "move", "args": {"actions": [{"direction": "RIGHT", "steps": 3}]}}],
        "tool_results": [{"name": "move", "result": {"moved": True, "actualSteps": 3, "blocked": False}}],
        "thought_text": "I go right.",
    },
}


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Paths of everything in a value, the value itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(record: dict, path: tuple, value: object) -> object:
    """The record with another value at a path, or without it."""
    if not path:
        return None if value is GONE else value
    record = copy.deepcopy(record)
    at = record
    for key in path[:-1]:
        at = at[key]
    if value is GONE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return record


@pytest.mark.parametrize("kind", RECORDS)
def test_wrong_types_are_rejects_that_were_foreseen(tmp_path, kind):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    cases = [(path, value) for path in places(RECORDS[kind]) for value in (*WRONG, GONE)]
    lines = [json.dumps(changed(RECORDS[kind], path, value)) for path, value in cases]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = SourceConfig(
        path=str(tmp_path / "data.jsonl"), kind=kind, **({"unit": "px"} if kind == "computer" else {})
    )
    items = list(read_rows((Path(source.path),), source, DataConfig(cache_dir=str(tmp_path / "cache"))))
    assert len({item.source for item in items}) == len(cases)
    for item in items:
        if isinstance(item, Reject):
            path, value = cases[int(item.source.rpartition(":")[2]) - 1]
            assert "nothing here reads a line like this one" not in item.message, (path, value, item.message)
            assert len(item.message) < 900 and item.message.isprintable(), (path, value)
