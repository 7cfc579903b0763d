"""Chat files of other trainers: each form gives the rows that its trainer would train on, or is refused by its name."""

import base64
import io
import json

import pytest
from PIL import Image
from source_rows import read_rows

from qwenvl_agent.data.source import Reject
from qwenvl_agent.schema import ToolCall

CLICK = {
    "name": "click",
    "description": "Click.",
    "parameters": {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
        "required": ["x", "y"],
    },
}
CALL = {"name": "click", "arguments": {"x": 1, "y": 2}}
ASK = {"role": "user", "content": "Q"}
TELL = {"role": "assistant", "content": "A"}


def png_bytes() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(file, "PNG")
    return file.getvalue()


BASE64 = base64.b64encode(png_bytes()).decode()


@pytest.fixture
def read(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (20, 10)).save(tmp_path / "b.png")

    def read(record):
        path = tmp_path / "chat.jsonl"
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")
        return list(read_rows(path, "chat"))

    return read


def told(rows) -> list[tuple]:
    """(what is asked, widths of its pictures, what is to be written, weight) of each row."""
    assert not any(isinstance(row, Reject) for row in rows), rows
    return [(r.step.observation.text, [p.width for p in r.step.observation.pictures], said(r), r.weight) for r in rows]


def said(row):
    turn = row.step.turn
    calls = [(call.name, call.arguments) for call in turn.tool_calls]
    return (turn.thought, calls) if calls else turn.text


def user(*content) -> dict:
    return {"role": "user", "content": list(content)}


def talk(*messages, **fields) -> dict:
    return {"messages": list(messages), **fields}


QA = [("Q", [], "A", 1.0)]
CLICKED = ("click", {"x": 1, "y": 2})
READ = {
    "ms-swift conversation": ({"conversation": [{"human": "Q", "assistant": "A"}]}, QA),
    "ms-swift query, response, history": (
        {"query": "<image>Q", "response": "A", "history": [["B", "C"]], "images": ["a.png"]},
        [("B", [], "C", 1.0), ("Q", [40], "A", 1.0)],
    ),
    "alpaca": ({"instruction": "Q", "input": "", "output": "A"}, QA),
    "alpaca with input": ({"instruction": "Q", "input": "R", "output": "A"}, [("Q\nR", [], "A", 1.0)]),
    "prompt and completion as text": ({"prompt": "Q", "completion": "A"}, QA),
    "TRL: an answer in the prompt is not learned": (
        {"prompt": [ASK, {**TELL, "content": "old"}, ASK], "completion": [TELL]},
        [("Q", [], "old", 0.0), ("Q", [], "A", 1.0)],
    ),
    "TRL pair": ({"prompt": [ASK], "chosen": [TELL], "rejected": [{**TELL, "content": "no"}]}, QA),
    "TRL pair without a prompt": (
        {"chosen": [ASK, {**TELL, "content": "old"}, ASK, TELL], "rejected": [ASK, {**TELL, "content": "old"}, ASK, ASK]},
        [("Q", [], "old", 0.0), ("Q", [], "A", 1.0)],
    ),
    "pair as text": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, QA),
    "pair with prompt, messages and scores": (
        {"prompt": "Q", "messages": [ASK, TELL], "chosen": [ASK, TELL], "rejected": [ASK], "score_chosen": 8.0},
        QA,
    ),
    "LLaMA-Factory ranking": (
        {"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "A"}, "rejected": {}},
        QA,
    ),
    "OpenAI pair": (
        {"input": {"messages": [ASK], "tools": []}, "preferred_output": [TELL], "non_preferred_output": [TELL]},
        QA,
    ),
    "LLaMA-Factory v1": (
        talk(
            {**user({"type": "text", "value": "Q"}), "loss_weight": 0.0},
            {
                "role": "assistant",
                "content": [{"type": "reasoning", "value": "T"}, {"type": "tool_call", "value": json.dumps(CALL)}],
                "loss_weight": 1.0,
            },
        ),
        [("Q", [], ("T", [CLICKED]), 1.0)],
    ),
    "LLaMA-Factory call that thinks": (
        {
            "conversations": [
                {"from": "human", "value": "Q"},
                {"from": "function_call", "value": f"<think>\nT\n</think>\n{json.dumps(CALL)}"},
            ]
        },
        [("Q", [], ("T", [CLICKED]), 1.0)],
    ),
    "ms-swift roles: calls in a row are one turn": (
        talk(
            ASK,
            {"role": "assistant", "content": "<think>\nT\n</think>\n\n"},
            {"role": "tool_call", "content": json.dumps(CALL)},
            {"role": "tool_call", "content": CALL},
            {"role": "tool_response", "content": '{"ok": 1}'},
            {"role": "tool_response", "content": {"ok": 2}},
            TELL,
        ),
        [("Q", [], ("T", [CLICKED, CLICKED]), 1.0), ("", [], "A", 1.0)],
    ),
    "thought before words and a call": (
        talk(ASK, {**TELL, "content": f"<think>T</think>\nW\n<tool_call>{json.dumps(CALL)}</tool_call>"}),
        [("Q", [], ("T\nW", [CLICKED]), 1.0)],
    ),
    "an empty thought is none": (talk(ASK, {**TELL, "content": "<think>\n\n</think>\n\nA"}), QA),
    "reasoning by another name": (
        talk(ASK, {"role": "assistant", "thinking": "T", "tool_calls": [CALL]}),
        [("Q", [], ("T", [CLICKED]), 1.0)],
    ),
    "Anthropic blocks": (
        talk(
            user({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}}, {"type": "text", "text": "Q"}),
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "T", "signature": "s"},
                    {"type": "tool_use", "id": "t1", "name": "click", "input": {"x": 1, "y": 2}},
                ],
            },
            user({"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "ok"}]}, {"type": "text", "text": "R"}),
            TELL,
            tools=[{"name": "click", "description": "Click.", "input_schema": CLICK["parameters"]}],
            system=[{"type": "text", "text": "S"}],
        ),
        [("Q", [8], ("T", [CLICKED]), 1.0), ("R", [], "A", 1.0)],
    ),
    "OpenAI Responses": (
        talk(
            user({"type": "input_image", "image_url": f"data:image/png;base64,{BASE64}"}, {"type": "input_text", "text": "Q"}),
            {"type": "function_call", "call_id": "c", "name": "click", "arguments": '{"x": 1, "y": 2}'},
            {"type": "function_call_output", "call_id": "c", "output": "ok"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "A", "annotations": []}]},
        ),
        [("Q", [8], ("", [CLICKED]), 1.0), ("", [], "A", 1.0)],
    ),
    "Qwen-Agent's parts": (talk(user({"image": "a.png"}, {"text": "Q"}), TELL), [("Q", [40], "A", 1.0)]),
    "nulls of Arrow": (
        talk(user({"type": "image", "text": None, "image": "b.png"}, {"type": "text", "text": "Q", "image": None}), TELL),
        [("Q", [20], "A", 1.0)],
    ),
    "Qwen-VL's pictures": (
        talk({**ASK, "content": "Picture 1: <img>a.png</img>\nPicture 2: <img>b.png</img>\nQ"}, TELL),
        [("Q", [40, 20], "A", 1.0)],
    ),
    "vision tokens": (
        talk({**ASK, "content": "<|vision_start|><|image_pad|><|vision_end|>Q"}, TELL, images=["a.png"]),
        [("Q", [40], "A", 1.0)],
    ),
    "messages as JSON text": ({"messages": json.dumps([ASK, TELL])}, QA),
    "xLAM": (
        {"query": "Q", "answers": json.dumps([CALL]), "tools": json.dumps([{"name": "click", "description": "C", "parameters": {"x": {"type": "int", "description": "X"}, "y": {"type": "int", "default": 0}}}])},
        [("Q", [], ("", [CLICKED]), 1.0)],
    ),
    "arguments by another name": (
        talk(ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "click", "args": {"x": 1, "y": 2}}}]}),
        [("Q", [], ("", [CLICKED]), 1.0)],
    ),
    "arguments that are another tool's": (
        talk(ASK, {"role": "assistant", "tool_calls": [{"name": "click", "arguments": {"x": 1, "y": 2, "text": None}}]}, tools=[CLICK]),
        [("Q", [], ("", [CLICKED]), 1.0)],
    ),
    "LLaMA-Factory v1 pair": (
        {"chosen_messages": [ASK, TELL], "rejected_messages": [ASK, {**TELL, "content": "no"}]},
        QA,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", READ)
def test_a_form_gives_its_rows(read, form):
    record, expected = READ[form]
    assert told(read(record)) == expected


def test_tools_of_other_servers_are_given_a_schema(read):
    (row,) = read(READ["xLAM"][0])
    assert row.tools[0].parameters == {
        "type": "object",
        "properties": {"x": {"type": "integer", "description": "X"}, "y": {"type": "integer", "default": 0}},
        "required": ["x"],
    }
    first, second = read(READ["Anthropic blocks"][0])
    assert first.tools[0].parameters == CLICK["parameters"] and first.system_prompt == "S"
    assert [(r.name, r.content) for r in first.step.results] == [("click", {"result": "ok"})]


OBJECTS = {"ref": ["the button"], "bbox": [[4, 3, 20, 15]]}
FIND = ({**ASK, "content": "<image>Find <ref-object>"}, {**TELL, "content": "<bbox>"})


@pytest.mark.parametrize(
    ("objects", "written"),
    [
        ({}, "[100, 100, 500, 500]"),
        ({"bbox_type": "real", "image_id": [1], "bbox": [[4, 3, 20, 10]]}, "[200, 300, 999, 999]"),
        ({"bbox_type": "norm1", "bbox": [[0.1, 0.2, 0.5, 1.0]]}, "[100, 200, 500, 999]"),
        ({"bbox": [[20, 15]]}, "[500, 500]"),
    ],
)
def test_objects_are_written_on_the_models_grid(read, objects, written):
    asked = {**FIND[0], "content": "<image><image>Find <ref-object>"}
    (row,) = read(talk(asked, FIND[1], images=["a.png", "b.png"], objects={**OBJECTS, **objects}))
    assert (row.step.observation.text, row.step.turn.text) == ("Find the button", written)


def test_objects_are_taken_in_the_order_of_the_text(read):
    objects = {"ref": ["one", "two"], "bbox": [[4, 3], [20, 15], [40, 30]]}
    record = {
        "conversations": [
            {"from": "human", "value": "<image><ref-object> at <bbox>, <ref-object>?"},
            {"from": "function_call", "value": '{"name": "click", "arguments": {"at": "<bbox>", "to": "<bbox>"}}'},
        ],
        "images": ["a.png"],
        "objects": objects,
    }
    (row,) = read(record)
    assert row.step.observation.text == "one at [100, 100], two?"
    assert row.step.turn.tool_calls == (ToolCall("click", {"at": "[500, 500]", "to": "[999, 999]"}),)


def test_objects_that_stand_for_nothing_are_noted(read):
    (row,) = read(talk(ASK, TELL, objects=OBJECTS))
    assert row.notes == ("objects_without_placeholders",)


NOT_LEARNED = [
    ({"train": "False"}, 0.0),
    ({"train": "no"}, 0.0),
    ({"loss_scale": "0.0"}, 0.0),
    ({"step_loss_mask": 0}, 0.0),
    ({"trainable": False}, 0.0),
    ({"masked": True}, 0.0),
    ({"masked": False, "weight": 1}, 1.0),
    ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": True}]}, 1.0),
    ({"loss": None, "weight": None}, 1.0),
]


@pytest.mark.parametrize(("marker", "weight"), NOT_LEARNED)
def test_markers_of_a_message(read, marker, weight):
    assert [row[3] for row in told(read(talk(ASK, {**TELL, **marker}, ASK, TELL)))] == [weight, 1.0]


@pytest.mark.parametrize(
    ("mask", "weights"),
    [([0, 1], [0.0, 1.0]), ([0, 0, 0, 1], [0.0, 1.0]), ([False, True], [0.0, 1.0]), (["no", "yes"], [0.0, 1.0])],
)
def test_a_list_of_weights_is_spread_over_the_turns(read, mask, weights):
    rows = told(read(talk(ASK, TELL, ASK, TELL, loss_mask=mask)))
    assert [row[3] for row in rows] == weights


REFUSED = {
    "a list of weights of another length": (talk(ASK, TELL, loss_mask=[1, 0, 1]), "loss_mask is a list of 3 for 2 messages"),
    "kto_tag as text": (talk(ASK, TELL, kto_tag="False"), "kto_tag of the row is False"),
    "label as text": (talk(ASK, TELL, label="no"), "label of the row is no"),
    "label of a bad answer": (talk(ASK, TELL, label=-1), "label of the row is -1"),
    "weight 0.0": (talk(ASK, TELL, weight=0.0), "weight of the row is 0.0"),
    "loss_mask as text": (talk(ASK, TELL, loss_mask="0.0"), "loss_mask of the row is 0.0"),
    "last_step_correct": (talk(ASK, TELL, last_step_correct=False), "last_step_correct of the row is False"),
    "score as text": (talk(ASK, TELL, score="-1"), "score of the row is -1"),
    "several scores": (talk(ASK, TELL, reward=[1, 0]), "reward of the row is [1, 0]"),
    "unknown marker of a row": (talk(ASK, TELL, is_correct="false"), "the row has 'is_correct': false: it is marked"),
    "unknown marker of a message": (talk(ASK, {**TELL, "no_loss": True}), "messages[1] has 'no_loss': True"),
    "a message that is a bad one": (talk(ASK, {**TELL, "label": False}), "messages[1] label is False: it is marked as a bad"),
    "a part of a message": (
        talk(ASK, {**TELL, "content": [{"type": "text", "text": "A", "train": False}]}),
        "messages[1] content[0] train is False: a turn is learned as a whole",
    ),
    "characters of a message": (
        talk(ASK, {**TELL, "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}),
        "messages[1] train_detail is",
    ),
    "one turn weighted twice": (
        talk(ASK, {**TELL, "loss": False}, {"role": "tool_call", "content": CALL, "loss": True}),
        "messages[1] and messages[2] are one turn, and weighted differently",
    ),
    "pixels as fractions": (
        talk(*FIND, images=["a.png"], objects={**OBJECTS, "bbox_type": "norm1"}),
        "objects.bbox[0] is [4, 3, 20, 15] (fraction), outside the picture of 40x30 px",
    ),
    "fractions as pixels": (
        talk(*FIND, images=["a.png"], objects={**OBJECTS, "bbox": [[0.1, 0.2, 0.3, 0.4]]}),
        "if they are fractions of the picture, say bbox_type norm1",
    ),
    "x, y, width, height": (
        talk(*FIND, images=["a.png"], objects={**OBJECTS, "bbox": [[20, 15, 10, 5]]}),
        "its second corner is left of the first or above it",
    ),
    "outside the picture": (talk(*FIND, images=["b.png"], objects={**OBJECTS, "bbox": [[4, 3, 30, 5]]}), "outside the picture of 20x10"),
    "too few boxes": (talk(*FIND, images=["a.png"], objects={"ref": ["x"], "bbox": []}), "objects has 0 for 1 <bbox>"),
    "boxes of an unknown type": (talk(*FIND, images=["a.png"], objects={**OBJECTS, "bbox_type": "norm1000"}), "objects.bbox_type is 'norm1000'"),
    "boxes of no picture": (talk(*FIND, images=["a.png"], objects={**OBJECTS, "image_id": [1]}), "objects.image_id is 1 for 1 images"),
    "three numbers": (talk(*FIND, images=["a.png"], objects={**OBJECTS, "bbox": [[1, 2, 3]]}), "objects.bbox is '[[1, 2, 3]]'"),
    "placeholders without objects": (talk(*FIND, images=["a.png"]), "messages[0] has '<ref-object>', which marks a place"),
    "another model's marks": (talk(ASK, {**TELL, "content": "<|box_start|>(1,2)<|box_end|>"}), "messages[1] has '<|box_start|>'"),
    "arguments under two names": (
        talk(ASK, {"role": "assistant", "tool_calls": [{"name": "click", "arguments": {}, "args": {"x": 1}}]}),
        "messages[1] tool_calls[0] has arguments, args: what click is to be given would be lost",
    ),
    "arguments beside the call": (
        talk(ASK, {"role": "assistant", "tool_calls": [{"name": "click", "x": 1}]}),
        "messages[1] tool_calls[0] has x: what click is to be given would be lost",
    ),
    "pixels in an answer": (
        talk({**ASK, "content": "<image>Q"}, {**TELL, "content": '[{"bbox_2d": [135, 114, 1016, 672]}]'}, images=["a.png"]),
        "messages[1] has the place [135, 114, 1016, 672], which is not within 0 to 1000",
    ),
    "answers that are masked": ({**talk(ASK, TELL), "mask": "Assistant"}, "mask of the row is 'Assistant'"),
    "a task that failed": (talk(ASK, TELL, task_completed=False), "the row has 'task_completed': False"),
    "messages by another name": ({"dialog": [ASK, TELL]}, "'dialog' holds messages, and is not read: call it messages"),
    "tools in a message": (talk({"role": "system", "content": "S", "tools": [CLICK]}, ASK, TELL), "list them in the row's tools"),
    "Google's contents": ({"contents": [{"role": "user", "parts": []}]}, "the form is Google's, which is not read"),
    "text": ({"text": "Q A"}, "the form is pretraining, which is not read"),
    "a prompt alone": ({"prompt": [ASK], "reward_model": {"style": "rule"}}, "the form is a prompt without its answer"),
    "several answers": ({"question": "Q", "answers": ["A", "B"]}, "answers is \"['A', 'B']\": several answers"),
    "two answers": ({"query": "Q", "response": "A", "output": "B"}, "response and output are given, and differ"),
    "two conversations": ({**talk(ASK, TELL), "conversations": [ASK]}, "messages and conversations are given, and differ"),
    "two lists of pictures": (talk(ASK, TELL, images=["a.png"], image="b.png"), "images and image are given, and differ"),
    "a tool of a server": (talk(ASK, TELL, tools=[{"type": "computer_20250124", "name": "computer"}]), "tools[0] is the tool 'computer_20250124'"),
    "no content": (talk({"role": "user"}, TELL), "messages[0] has no content"),
    "words elsewhere": (talk({**ASK, "text": "more"}, TELL), "messages[0] has 'text', which is not read: the words would be lost"),
    "a call elsewhere": (talk(ASK, {**TELL, "action": "click"}), "messages[1] has 'action', which is not read: the call would be lost"),
    "a picture elsewhere": (talk(ASK, TELL, image_path="a.png"), "'image_path' is 'a.png', which is not read"),
    "a picture in a part of text": (talk(user({"type": "text", "text": "Q", "image": "a.png"}), TELL), "messages[0] content[0] is"),
    "two contents": (talk({**ASK, "value": "R"}, TELL), "messages[0] has content and value, which differ"),
    "two speakers": (talk({**ASK, "from": "gpt"}, TELL), "messages[0] has role 'user' and from 'gpt'"),
    "a call in a user's message": (talk(user({"type": "tool_use", "name": "click"}), TELL), "messages[0] content[0] is a tool_use"),
    "words after a block of a call": (
        talk(ASK, {"role": "assistant", "content": [{"type": "tool_use", "name": "click", "input": {}}, {"type": "text", "text": "A"}]}),
        "messages[1] content[1] stands after a call",
    ),
    "a system message in the middle": (talk(ASK, {"role": "system", "content": "S"}, TELL), "write its words into the first system message"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (talk(ASK, {**TELL, "mask": True}), "not said"),
        (talk(ASK, TELL, mask=0), "not said"),
        (talk({**ASK, "content": "<video>Q"}, TELL), "cannot be shown"),
        (talk({**ASK, "content": "Q <audio>"}, TELL), "cannot be shown"),
    ],
)
def test_what_may_mean_either_or_is_not_there_is_refused(read, record, said):
    (reject,) = read(record)
    assert isinstance(reject, Reject) and said in reject.message
    (row,) = read(talk({**ASK, "content": "What does <video>x</video> do?"}, TELL))
    assert row.notes == ()


def called(coordinate, name="computer_use"):
    calls = [
        {
            "type": "function",
            "function": {"name": name, "arguments": {"action": "left_click", "coordinate": coordinate}},
        }
    ]
    return talk(ASK, {"role": "assistant", "content": "", "tool_calls": calls})


@pytest.mark.parametrize("name", ["computer_use", "mobile_use"])
def test_places_of_calls_are_on_the_grid_or_refused(read, name):
    (row,) = read(called([200, 1000], name))
    assert row.notes == ("places_as_they_are_written",)
    for place, said in (([1200, 300], "not within 0 to 1000"), ([-3, 300], "not within"), ([0.2, 0.3], "fractions")):
        (reject,) = read(called(place, name))
        assert said in reject.message
    assert read(called([0.2, 0.3], "look"))[0].notes == ()


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_not_read_is_refused_by_name(read, fault):
    record, expected = REFUSED[fault]
    (reject,) = read(record)
    assert isinstance(reject, Reject) and expected in reject.message, reject
    assert reject.source.endswith("chat.jsonl:1")


@pytest.mark.parametrize(
    ("record", "notes"),
    [
        (talk(ASK, TELL, clip_score=0.3), ("not_read: clip_score",)),
        (talk(ASK, {**TELL, "confidence_score": 0}), ("not_read: confidence_score",)),
        (talk(ASK, TELL, history=[["B", "C"]]), ("not_read: history",)),
        (talk(ASK, {**TELL, "content": '{"bbox_2d": [1, 2, 3, 1000]}'}), ("places_as_they_are_written",)),
        (talk({**ASK, "train": True}, TELL), ("only_answers_are_learned",)),
        (talk(ASK, TELL, constraint=False, label="cat", source="web", split_key=3), ()),
    ],
)
def test_what_is_left_out_is_noted(read, record, notes):
    (row,) = read(record)
    assert row.notes == notes
