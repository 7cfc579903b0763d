"""Chat-style JSONL: each spelling gives the same steps, and each fault is rejected with its place and remedy."""

import json

import pytest
from PIL import Image
from source_rows import read_rows

from qwenvl_agent.data.source import Reject
from qwenvl_agent.schema import ToolCall, ToolResult, Turn

CLICK = {
    "name": "click",
    "description": "Click.",
    "parameters": {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
        "required": ["x", "y"],
        "additionalProperties": False,
    },
}
CALL = {"name": "click", "arguments": {"x": 1, "y": 2}}
USER = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello."}


@pytest.fixture
def read(tmp_path):
    """Write records (objects, or raw lines) and two pictures to a folder; return what the reader yields."""
    for name, size in (("a.png", (40, 30)), ("b.png", (20, 10))):
        Image.new("RGB", size).save(tmp_path / name)

    def read(*records):
        path = tmp_path / "chat.jsonl"
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return list(read_rows(path, "chat"))

    return read


def reject_of(items):
    (reject,) = items
    assert isinstance(reject, Reject), reject
    assert reject.source.endswith("chat.jsonl:1")
    return reject.message


def test_each_assistant_message_is_a_step(read):
    rows = read(
        {
            "id": "talk",
            "images": ["a.png", "b.png"],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<image>\nWhat is it?"},
                {"role": "assistant", "content": " A cat. "},
                {"role": "user", "content": "And this? <image>"},
                {"role": "assistant", "content": "A dog."},
            ],
        }
    )
    assert [(r.episode_id, r.turn_index, r.split_key) for r in rows] == [("talk#1", 0, "talk"), ("talk#1", 1, "talk")]
    assert [r.system_prompt for r in rows] == ["Be brief."] * 2
    assert [r.step.turn for r in rows] == [Turn(text="A cat."), Turn(text="A dog.")]
    assert [r.step.observation.text for r in rows] == ["What is it?", "And this?"]
    sizes = [[(p.width, p.height) for p in r.step.observation.pictures] for r in rows]
    assert sizes == [[(40, 30)], [(20, 10)]]
    assert [r.notes for r in rows] == [(), ("image_moved",)]


OPENAI = {
    "tools": [{"type": "function", "function": CLICK}],
    "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Press it."}]},
        {
            "role": "assistant",
            "content": "It is there.",
            "tool_calls": [{"id": "c1", "function": {"name": "click", "arguments": '{"x": 1, "y": 2}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '{"ok": true}'},
        {"role": "assistant", "content": "Done."},
    ],
    "images": ["a.png"],
}
CALL_TEXT = {
    "tools": json.dumps([CLICK]),
    "messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Press it."}]},
        {"role": "assistant", "content": f"It is there.\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>"},
        {"role": "tool", "name": "click", "content": {"ok": True}},
        {"role": "assistant", "content": [{"type": "text", "text": "Done."}]},
    ],
}
SHAREGPT = {
    "tools": json.dumps([CLICK]),
    "conversations": [
        {"from": "human", "value": "<image>Press it."},
        {"from": "gpt", "value": "It is there.", "tool_calls": [CALL]},
        {"from": "observation", "value": '{"ok": true}'},
        {"from": "gpt", "value": "Done."},
    ],
    "image": "a.png",
}


@pytest.mark.parametrize("record", [OPENAI, CALL_TEXT, SHAREGPT], ids=["openai", "call_text", "sharegpt"])
def test_every_spelling_gives_the_same_steps(read, record):
    first, second = read(record)
    assert first.tools[0].name == "click" and first.tools[0].parameters == CLICK["parameters"]
    assert first.step.observation.text == "Press it." and len(first.step.observation.pictures) == 1
    assert first.step.turn == Turn(thought="It is there.", tool_calls=(ToolCall("click", {"x": 1, "y": 2}),))
    assert first.step.results == (ToolResult("click", {"ok": True}),)
    assert second.step.turn == Turn(text="Done.") and second.step.observation.text == ""


def test_function_call_role_and_text_result(read):
    first, second = read(
        {
            "conversations": [
                {"from": "human", "value": "Press it."},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "pressed"},
                {"from": "gpt", "value": "Done."},
            ]
        }
    )
    assert first.step.turn == Turn(tool_calls=(ToolCall("click", {"x": 1, "y": 2}),))
    assert first.step.results == (ToolResult("click", {"result": "pressed"}),)


def test_results_are_placed_by_id(read):
    calls = [{"id": name, "function": {"name": name, "arguments": {}}} for name in ("one", "two")]
    results = [{"role": "tool", "tool_call_id": name, "content": name} for name in ("two", "one")]
    first, _ = read({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": calls}, *results, HELLO]})
    assert first.step.results == (ToolResult("one", {"result": "one"}), ToolResult("two", {"result": "two"}))


def test_picture_of_a_tool_result_joins_the_next_observation(read):
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    screen = {"role": "tool", "content": "<image>clicked"}
    first, second = read({"messages": [USER, call, screen, HELLO], "images": ["b.png"]})
    assert first.step.results == (ToolResult("click", {"result": "clicked"}),)
    assert [p.width for p in second.step.observation.pictures] == [20] and second.notes == ("image_moved",)


def test_weight_and_loss_of_a_turn(read):
    turns = [{**HELLO, "weight": 0}, {**HELLO, "loss": False}, {**HELLO, "weight": 0.5}, HELLO]
    rows = read({"messages": [m for turn in turns for m in (USER, turn)]})
    assert [row.weight for row in rows] == [0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("marker", "weight"),
    [
        ({"weight": 0}, 0.0),
        ({"loss_scale": 0.0}, 0.0),
        ({"loss_weight": 0.5}, 0.5),
        ({"loss_mask": 0}, 0.0),
        ({"train": False}, 0.0),
        ({"training": False}, 0.0),
        ({"loss": False, "weight": 0}, 0.0),
        ({"train": True, "weight": None, "loss_mask": 1}, 1.0),
    ],
)
def test_every_marker_of_what_not_to_learn_is_honoured(read, marker, weight):
    rows = read(messages(USER, assistant("wrong", **marker), USER, HELLO))
    assert [row.weight for row in rows] == [weight, 1.0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kto_tag": False}, "kto_tag of the row is False: its answers are marked as not to be learned"),
        ({"label": False}, "label of the row is False"),
        ({"label": 0}, "label of the row is 0"),
        ({"train": "false"}, "train of the row is false"),
        ({"loss_mask": 0}, "loss_mask of the row is 0"),
        ({"weight": 0.5}, "weight of the row is 0.5"),
        ({"loss_scale": "ignore"}, "loss_scale of the row is ignore"),
        ({"score": -1}, "score of the row is -1: a bad answer would be learned"),
        ({"reward": float("nan")}, "reward of the row is nan"),
        ({"chosen": {"from": "gpt", "value": "x"}}, "chosen is given beside a conversation that ends in an answer"),
    ],
)
def test_a_row_with_such_a_marker_is_rejected(read, fields, expected):
    assert expected in reject_of(read(messages(USER, HELLO, **fields)))


def test_words_about_a_call_stay_words(read):
    for text in ("I would click(x=1) but will not.", 'It is {"name": "drag"}.', "Action: wait"):
        (row,) = read(messages(USER, assistant(text), tools=[CLICK]))
        assert row.step.turn == Turn(text=text)


def test_a_row_marked_as_good_is_a_row(read):
    (row,) = read(messages(USER, HELLO, kto_tag=True, label=True, train=1, weight=1.0, score=2, loss=2.5))
    assert row.weight == 1.0 and row.notes == ()
    (row,) = read(messages(USER, HELLO, rejected_response="Go away."))
    assert row.notes == ("rejected_answer_left_out",)


def test_markers_that_contradict_each_other(read):
    record = messages(USER, assistant("x", train=False, weight=1))
    assert "messages[1] has weight 1, train False: which holds is unknown" in reject_of(read(record))


@pytest.mark.parametrize("arguments", ["", " ", None, {}, "{}"])
def test_a_call_without_arguments(read, arguments):
    call = {"function": {"name": "noop", "arguments": arguments}}
    (row,) = read(messages(USER, assistant(None, tool_calls=[call])))
    assert row.step.turn.tool_calls == (ToolCall("noop", {}),)


def test_a_picture_named_in_the_text_is_shown(read):
    for content in ("Picture 1: <img>a.png</img>\nWhat?", [{"type": "text", "text": "<img>a.png</img>What?"}]):
        (row,) = read(messages({"role": "user", "content": content}, HELLO))
        assert row.step.observation.text == "What?" and [p.width for p in row.step.observation.pictures] == [40]
    gone = messages({"role": "user", "content": "<img>gone.png</img>"}, HELLO)
    assert "gone.png' does not exist" in reject_of(read(gone))
    assert "nothing is downloaded" in reject_of(
        read(messages({**USER, "content": "<img>http://a.b/c.png</img>"}, HELLO))
    )


def test_a_json_list_of_conversations(tmp_path):
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([messages(USER, HELLO), messages(USER), messages(USER, HELLO)], indent=1))
    first, reject, last = read_rows(path, "chat")
    assert first.step.turn == last.step.turn == Turn(text="Hello.")
    assert isinstance(reject, Reject) and "no assistant message" in reject.message
    lines = path.read_text().split("\n")
    for row in (first, reject, last):
        assert lines[int(row.source.rpartition(":")[2]) - 1].strip() == "{"


def test_untrusted_text_is_escaped_and_a_last_question_noted(read):
    (row,) = read({"messages": [{"role": "user", "content": "<|im_end|> hi"}, HELLO, USER]})
    assert row.step.observation.text == "<\\|im_end|> hi"
    assert row.notes == ("user_message_unanswered",)


def test_a_bad_line_does_not_stop_the_next(read):
    items = read({"messages": [USER, HELLO]}, b"{broken", b"", {"messages": [USER, HELLO]})
    assert [item.source.rpartition(":")[2] for item in items] == ["1", "2", "4"]
    assert isinstance(items[1], Reject)


def messages(*items, **record):
    return {"messages": list(items), **record}


def assistant(content="", **fields):
    return {"role": "assistant", "content": content, **fields}


RESULT = {"role": "tool", "content": "{}"}
REJECTS = {
    b"{broken": "not JSON (Expecting property name enclosed in double quotes, column 2): the line is skipped",
    b'{"a": "\xff"}': "byte 7 is not UTF-8",
    b"[1]": "a list, not an object",
    b"[" * 100_000: "nested too deep",
    b"{}": "conversations is None: there is no conversation",
}


@pytest.mark.parametrize("line", REJECTS, ids=range(len(REJECTS)))
def test_unreadable_lines(read, line):
    assert REJECTS[line] in reject_of(read(line))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (messages(USER), "no assistant message"),
        (messages("hi", HELLO), "messages[0] is 'hi': not a message"),
        (messages({"role": "robot", "content": ""}, HELLO), "messages[0] role is 'robot': nobody known speaks"),
        (messages({"role": "user", "content": 3}, HELLO), "messages[0] content is 3"),
        (messages(USER, HELLO, HELLO), "messages[2] follows another assistant message"),
        (messages(HELLO), "messages[0] speaks before any user"),
        (messages(USER, assistant("")), "messages[1] says nothing"),
        (messages(USER, {"role": "system", "content": "x"}, HELLO), "messages[1] is a system message after the start"),
        (messages({"role": "system", "content": "x"}, USER, HELLO, system="y"), "both 'system' and a system message"),
        (messages(USER, RESULT, HELLO), "messages[1] is a tool result without a call: it cannot be placed"),
        (messages(USER, HELLO, RESULT, HELLO), "messages[2] is a tool result without a call"),
        (
            messages(USER, assistant(tool_calls=[CALL]), RESULT, RESULT, HELLO),
            "messages[3] is a tool result without a call",
        ),
        (
            messages(USER, assistant(tool_calls=[CALL]), {**RESULT, "name": "drag"}, HELLO),
            "messages[2] is a result of 'drag', but the call was 'click'",
        ),
        (messages(USER, assistant("<|im_end|>")), "assistant text holds the control token '<|im_end|>'"),
        (messages(USER, assistant("<tool_call>{}")), "assistant text holds the control token '<tool_call>'"),
        (
            messages(USER, assistant("<tool_call>{x}</tool_call>")),
            "messages[1] <tool_call> holds no call that can be read (json_error)",
        ),
        (
            messages(USER, assistant(f"<tool_call>{json.dumps(CALL)}</tool_call> so")),
            "messages[1] has text after a call",
        ),
        (
            messages(USER, assistant(f"<tool_call>{json.dumps(CALL)}</tool_call>", tool_calls=[CALL])),
            "messages[1] has calls in its text besides its calls: they would double",
        ),
        (messages(USER, assistant(tool_calls=[{"name": "click", "arguments": [1]}])), "arguments of click are [1]"),
        (
            messages(USER, assistant(tool_calls=[{**CALL, "name": "drag"}]), tools=[CLICK]),
            "messages[1] calls 'drag', which is not one of the row's tools: use one of click",
        ),
        (
            messages(USER, assistant(tool_calls=[{"name": "click", "arguments": {"x": 1}}]), tools=[CLICK]),
            "arguments of click do not fit its schema ('y' is a required property)",
        ),
        (messages(USER, HELLO, tools="[{]"), "tools is a string but not JSON"),
        (
            messages(USER, HELLO, tools=[{"description": "x"}]),
            "tools[0] is {'description': 'x'}: a tool without a name",
        ),
        (
            messages(USER, HELLO, tools=[{**CLICK, "parameters": {"type": "thing"}}]),
            "tools[0] parameters: not a JSON schema",
        ),
        (messages(USER, assistant("x", weight=-1)), "messages[1] weight is -1"),
        (messages(USER, assistant("x", reasoning_content="y")), "messages[1] has reasoning_content without a call"),
        (messages({**USER, "images": ["a.png"]}, HELLO), "messages[0] has images of its own"),
        (messages(USER, HELLO, videos=["a.mp4"]), "videos is given: only text and pictures"),
        (messages(USER, HELLO, images=["a.png"]), "1 images for 0 placeholders"),
        (messages({"role": "user", "content": "<image>"}, HELLO), "messages[0] image is placeholder 1 for 0 images"),
        (
            messages({"role": "user", "content": [{"type": "video"}]}, HELLO),
            "messages[0] content[0] is \"{'type': 'video'}\": only text and image parts",
        ),
    ],
)
def test_faulty_conversations(read, record, expected):
    assert expected in reject_of(read(record))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("gone.png", "does not exist: there is nothing to look at"),
        ("../a.png", "path '../a.png' leaves the dataset folder"),
        ("/etc/passwd", "path '/etc/passwd' leaves the dataset folder"),
        ("chat.jsonl", "is not a readable picture"),
        ("https://example.org/a.png", "nothing is downloaded"),
        ({"bytes": "x"}, "is no base64"),
        ("", "not a file's path"),
    ],
)
def test_faulty_pictures(read, image, expected):
    message = reject_of(read(messages({"role": "user", "content": "<image>"}, HELLO, images=[image])))
    assert expected in message


def test_picture_over_the_decompression_limit(read, monkeypatch):
    record = messages({"role": "user", "content": "<image>"}, HELLO, images=["a.png"])
    for limit in (1199, 500):  # a.png has 1200: Pillow warns at the first limit and refuses at the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert f"has more than {limit} pixels: decoding it could fill the memory" in reject_of(read(record))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    assert not isinstance(read(record)[0], Reject)


def test_linked_picture_outside_the_folder(read, tmp_path_factory, tmp_path):
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    Image.new("RGB", (4, 4)).save(outside)
    (tmp_path / "link.png").symlink_to(outside)
    record = messages({"role": "user", "content": "<image>"}, HELLO, images=["link.png"])
    assert "leaves the dataset folder" in reject_of(read(record))
