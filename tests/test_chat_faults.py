"""Every field of every form of chat with every wrong type: rows that hold all that the record says, or a reject by name."""

import copy
import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwenvl_agent.containers import Record
from qwenvl_agent.data.readers.chat import read_conversation
from qwenvl_agent.data.source import Reject
from qwenvl_agent.json_input import fault_of_line
from qwenvl_agent.picture_store import PictureFolder

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "word_tool",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}


def call(word: str) -> dict:
    return {"name": "look", "arguments": {"at": word}}


RECORDS = {
    "openai": {
        "tools": [TOOL],
        "images": ["word_a.png", "word_b.png"],
        "messages": [
            {"role": "system", "content": "word_system"},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "word_ask"}]},
            {
                "role": "assistant",
                "content": "word_thought",
                "tool_calls": [{"id": "c", "type": "function", "function": call("word_call")}],
                "weight": 1,
            },
            {"role": "tool", "tool_call_id": "c", "content": "word_result <image>"},
            {"role": "assistant", "content": "word_answer", "loss": True},
        ],
    },
    "sharegpt": {
        "system": "word_system",
        "image": "word_a.png",
        "conversations": [
            {"from": "human", "value": "<image>word_ask"},
            {"from": "function_call", "value": json.dumps(call("word_call"))},
            {"from": "observation", "value": "word_result"},
            {"from": "gpt", "value": "word_answer"},
        ],
    },
    "ms-swift": {
        "tools": json.dumps([TOOL]),
        "images": ["word_a.png"],
        "objects": {"ref": ["word_ref"], "bbox": [[1, 2, 3, 4]], "bbox_type": "real", "image_id": [0]},
        "messages": [
            {"role": "user", "content": "<image>word_ask <ref-object> <bbox>"},
            {"role": "tool_call", "content": json.dumps(call("word_call")), "loss": True},
            {"role": "tool_call", "content": call("word_second"), "loss_scale": 1.0},
            {"role": "tool_response", "content": "word_result"},
            {"role": "tool_response", "content": {"result": "word_other"}},
            {"role": "assistant", "content": "word_answer"},
        ],
    },
    "anthropic": {
        "system": [{"type": "text", "text": "word_system"}],
        "tools": [{"name": "look", "description": "word_tool", "input_schema": TOOL["function"]["parameters"]}],
        "images": ["word_a.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "word_ask"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "word_thought"},
                    {"type": "text", "text": "word_words"},
                    {"type": "tool_use", "id": "c", "name": "look", "input": {"at": "word_call"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "word_result"}]},
                    {"type": "text", "text": "word_more"},
                ],
            },
            {"role": "assistant", "content": "word_answer"},
        ],
    },
    "query": {
        "system": "word_system",
        "query": "<image>word_ask",
        "response": "word_answer",
        "history": [["word_before", "word_told"]],
        "images": ["word_a.png"],
    },
    "alpaca": {"instruction": "word_ask", "input": "word_more", "output": "word_answer"},
    "exchanges": {"conversation": [{"human": "word_ask", "assistant": "word_answer"}]},
    "pair": {
        "prompt": [{"role": "user", "content": "word_ask"}],
        "chosen": [{"role": "assistant", "content": "word_answer"}],
    },
    "completion": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "word_ask"}]}],
        "completion": [{"role": "assistant", "content": "word_answer"}],
    },
    "responses": {
        "messages": [
            {"role": "user", "content": [{"type": "input_text", "text": "word_ask"}]},
            {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"at": "word_call"}'},
            {"type": "function_call_output", "call_id": "c", "output": "word_result"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "word_answer"}]},
        ]
    },
    "qwen-vl": {
        "conversations": [
            {"from": "user", "value": "Picture 1: <img>word_a.png</img>\nword_ask"},
            {"from": "assistant", "value": "word_answer"},
        ]
    },
    "llama-factory-v1": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "word_ask"}], "loss_weight": 0.0},
            {
                "role": "assistant",
                "content": [
                    {"type": "reasoning", "value": "word_thought"},
                    {"type": "tool_call", "value": json.dumps(call("word_call"))},
                ],
                "loss_weight": 1.0,
            },
        ]
    },
    "xlam": {"query": "word_ask", "answers": json.dumps([call("word_call")]), "tools": json.dumps([TOOL])},
}
WRONG = (None, True, False, 0, -1, 1.5, 10**400, "", "x", "word_x", "[", "<image>", [], [1], ["x"], [[]], {}, {"a": 1})
WRONG_TYPES = [
    *WRONG,
    {"type": "text"},
    [{"type": "image", "image": "word_a.png"}],
    {"role": "user", "content": "word_y"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> PictureFolder:
    path = tmp_path_factory.mktemp("chat")
    for name in ("word_a.png", "word_b.png"):
        Image.new("RGB", (40, 30)).save(path / name)
    return PictureFolder(path, path / "kept")


def paths(value, path=()) -> Iterator[tuple]:
    """Every place in a record, the record's own left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths(item, (*path, key))


def put(record: dict, path: tuple, value) -> dict:
    record = copy.deepcopy(record)
    inside = record
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = copy.deepcopy(value)
    return record


def words_in(value) -> set[str]:
    """The words by which a part of a record is known again, but for the type of a call."""
    text = re.sub(r'"type": ("word_x"|{[^{}]*})', "", json.dumps(value))
    return {word for word in text.replace('"', " ").replace("\\", " ").split() if word.startswith("word_")}


def read(record: dict, folder: PictureFolder) -> list:
    try:
        return list(read_conversation(Record("chat.jsonl:1", json.dumps(record).encode()), folder))
    except Exception as error:
        return [Reject("chat.jsonl:1", fault_of_line(error))]


def check(record: dict, folder: PictureFolder) -> None:
    items = read(record, folder)
    if isinstance(items[0], Reject):
        assert "nothing here reads a line like this one" not in items[0].message, (items[0].message, record)
        assert len(items[0].message) > 30, items[0].message
        return
    rows = [
        (r.system_prompt, [t.to_json() for t in r.tools], r.step.observation.text, r.step.turn, r.step.results)
        for r in items
    ]
    shown = [picture.path for r in items for picture in r.step.observation.pictures]
    notes = [note for r in items for note in r.notes]
    if "user_message_unanswered" in notes:
        return  # the last message, and the pictures in it, are left out by name
    said = f"{rows} {shown} {notes}"
    lost = [word for word in words_in({key: record[key] for key in record if key != "objects"}) if word not in said]
    if "objects_without_placeholders" not in notes and isinstance(record.get("objects"), dict):
        lost += [word for word in words_in(record["objects"]) if word not in said]
    assert not lost, (lost, record, rows)


@pytest.mark.parametrize("form", RECORDS)
def test_the_forms_themselves_are_read(form, folder):
    items = read(RECORDS[form], folder)
    assert not isinstance(items[0], Reject), items
    check(RECORDS[form], folder)


@pytest.mark.parametrize("form", RECORDS)
def test_a_wrong_type_anywhere_loses_nothing_in_silence(form, folder):
    for path in list(paths(RECORDS[form])):
        for wrong in WRONG_TYPES:
            check(put(RECORDS[form], path, wrong), folder)


KEYS = ("role", "content", "type", "text", "image", "value", "from", "name", "arguments", "weight", "loss", "x")
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["word_z", "<image>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(form=st.sampled_from(sorted(RECORDS)), place=st.randoms(use_true_random=False), value=JSON)
def test_any_json_anywhere_loses_nothing_in_silence(form, place, value, folder):
    check(put(RECORDS[form], place.choice(list(paths(RECORDS[form]))), value), folder)
