"""One bad line of a data file costs that line: it is rejected with its place, quickly, and all others are read."""

import json
import time

import pytest
from PIL import Image

from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.evaluation.rollout import check_call
from qwenvl_agent.schema import Tool, ToolCall

MAX_SECONDS = 5.0
"""For one line, on a busy machine."""
DEEP = 900
"""Python's own reader of JSON takes this depth, its writer and most walkers do not."""


def tool(parameters: object, name: str = "f") -> dict:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def chat(content: str = "hi", arguments: object = None, parameters: object = None, **fields) -> dict:
    call = {"function": {"name": "f", "arguments": {"x": "a"} if arguments is None else arguments}}
    tools = [tool({"type": "object"} if parameters is None else parameters)]
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"messages": [{"role": "user", "content": content}, turn | fields.pop("turn", {})], "tools": tools, **fields}


def prop(**schema) -> dict:
    return {"type": "object", "properties": {"x": schema}}


def nested(depth: int, inner: object = 1) -> object:
    for _ in range(depth):
        inner = {"a": [inner]}
    return inner


def doubling(levels: int) -> dict:
    definitions = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(levels)}
    return {"$ref": "#/$defs/a0", "$defs": definitions | {f"a{levels}": {}}}


def unevaluated(depth: int) -> dict:
    """Each level looks at all below it twice."""
    schema = {"unevaluatedProperties": False}
    for _ in range(depth):
        schema = {"anyOf": [schema], "unevaluatedProperties": False}
    return schema


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def with_number(digits: str) -> bytes:
    return raw(json.dumps(chat(arguments={"x": "NUMBER"})).replace('"NUMBER"', digits))


NOT_FETCHED = "leads to nothing in the schema, and nothing is fetched from elsewhere"
CHAT = {
    "dangling reference": (chat(parameters=prop(**{"$ref": "#/components/schemas/X"})), NOT_FETCHED),
    "http reference": (chat(parameters=prop(**{"$ref": "http://127.0.0.1:9/schema.json"})), NOT_FETCHED),
    "https reference of an $id": (
        chat(parameters={"$id": "https://example.org/a/b", "properties": {"x": {"$ref": "c"}}}),
        NOT_FETCHED,
    ),
    "file reference": (chat(parameters={"$ref": "file:///etc/hostname"}), NOT_FETCHED),
    "dynamic reference": (chat(parameters={"$dynamicRef": "http://127.0.0.1:9/x#y"}), NOT_FETCHED),
    "reference to what is no schema": (
        chat(parameters={"properties": {"x": {"$ref": "#/type"}}, "type": "object"}),
        NOT_FETCHED,
    ),
    "reference to itself": (chat(parameters=prop(**{"$ref": "#/properties/x"})), "leads to itself"),
    "recursion without end": (chat(parameters={"allOf": [{"$ref": "#"}]}), "refers to itself without end"),
    "references that double": (chat(parameters=doubling(40)), "more than 100000 steps to check a call"),
    "unevaluated properties in one another": (
        chat(parameters=unevaluated(25)),
        "more than 100000 steps to check a call",
    ),
    "multiple of nearly nothing": (chat(parameters=prop(multipleOf=1e-320), arguments={"x": 1.5}), "do not fit"),
    "a float's multiple that overflows": (
        chat(parameters=prop(multipleOf=0.1), arguments={"x": 10**400}),
        "numbers too large or too small to check",
    ),
    "pattern without end": (
        chat(parameters=prop(pattern="^(a+)+$"), arguments={"x": "a" * 60 + "!"}),
        "does not match '^(a+)+$'",
    ),
    "property pattern without end": (
        chat(
            parameters={"patternProperties": {"^(a|a)*$": {"type": "null"}}, "additionalProperties": False},
            arguments={"a" * 60 + "_": "x"},
        ),
        "Additional properties are not allowed",
    ),
    "pattern of look-around": (chat(parameters=prop(pattern="(?=a)(a*)*b")), "cannot be checked in bounded time"),
    "pattern that is none": (chat(parameters=prop(pattern="(")), "cannot be checked in bounded time"),
    "unique items by the thousand": (
        chat(parameters=prop(uniqueItems=True), arguments={"x": [{"a": i % 9999} for i in range(10_000)]}),
        "has non-unique elements",
    ),
    "schema that is none": (chat(parameters=prop(type="thing")), "tools[0] parameters: not a JSON schema"),
    "infinity in a schema": (chat(parameters=prop(default=float("inf"))), "a number that JSON has not"),
    "not a number in a schema": (chat(parameters=prop(minimum=float("nan"))), "a number that JSON has not"),
    "properties that are a list": (chat(parameters={"properties": [1]}), "not a JSON schema"),
    "5,000 digits": (with_number("7" * 5000), "a number has thousands of digits"),
    "5,000 digits in a string": (chat(arguments='{"x": ' + "7" * 5000 + "}"), "a number has thousands of digits"),
    "infinity": (with_number("1e400"), "f arguments.x is inf: JSON has no such value"),
    "not a number": (with_number("NaN"), "f arguments.x is nan: JSON has no such value"),
    "weight of 10^30": (chat(turn={"weight": 10**30}), "a loss cannot be scaled by it"),
    "weight of 400 digits": (chat(turn={"weight": 10**400}), "a loss cannot be scaled by it"),
    "weight below float32": (chat(turn={"weight": 1e-40}), "a loss cannot be scaled by it"),
    "negative weight": (chat(turn={"weight": -1}), "a loss cannot be scaled by it"),
    "weight that is no number": (raw(json.dumps(chat(turn={"weight": float("nan")}))), "a loss cannot be scaled by it"),
    "half a character quoted": (chat(turn={"weight": "\ud800\x1b[2J"}), "weight is \\ud800\\x1b[2J: a loss"),
    "weight as words": (chat(turn={"weight": "heavy"}), "a loss cannot be scaled by it"),
    "deep line": (b"[" * 100_000, "nested too deep"),
    "deep arguments": (chat(arguments={"x": nested(DEEP // 4)}), "lists and objects in one another"),
    "deep schema": (chat(parameters=nested(DEEP // 4)), "lists and objects in one another"),
    "deep message": (raw('{"messages": ' + "[" * DEEP + "]" * DEEP + "}"), "messages[0]"),
    "half a character": (raw(json.dumps(chat("\ud800"))), "is half a character"),
    "half a character in a tool": (chat(parameters=prop(description="\udfff")), "is half a character"),
    "half a character in a tool's name": (
        chat() | {"tools": [tool({}, name="f\ud800")]},
        "tool name holds '\\ud800', which no tokenizer takes",
    ),
    "half a character in a pattern": (chat(parameters=prop(pattern="\ud800")), "cannot be checked"),
    "half a character in a path": (chat("<image>", images=["\ud800.png"]), "half a character"),
    "NUL in a path": (chat("<image>", images=["a\0.png"]), "holds a NUL character"),
    "raw NUL": (b'{"a": "\0"}', "not JSON (Invalid control character at"),
    "path without end": (chat("<image>", images=["a" * 70_000]), "is not a readable picture"),
    "a folder as picture": (chat("<image>", images=["."]), "is not a readable picture"),
    "key twice": (b'{"messages": 1, "messages": 2}', "key 'messages' is there twice in one object"),
    "key twice in a string": (chat(arguments='{"x": 1, "x": 2}'), "key 'x' is there twice in one object"),
    "control token in a tool's name": (
        chat() | {"tools": [tool({}, name="<|im_end|>")]},
        "tool name holds the control token '<|im_end|>'",
    ),
    "thought that is no text": (chat(turn={"reasoning_content": [1]}), "reasoning_content"),
    "null": (b"null", "a NoneType, not an object"),
    "UTF-16": ("x".encode("utf-16"), "is not UTF-8"),
    "name of a call that is a number": (chat(turn={"tool_calls": [{"name": 3}]}), "a call without a name"),
}


def screen(**fields) -> dict:
    return {"instruction": "click", "screenshot": "a.png", "action": {"action": "click", "x": 3, "y": 4}, **fields}


COMPUTER = {
    "empty point": (screen(action="<point></point>"), "is no action"),
    "empty point of a call": (screen(action="CLICK <point></point>"), "0 numbers"),
    "5,000 digits": (
        raw(json.dumps(screen(action={"action": "click", "x": "N", "y": 4})).replace('"N"', "7" * 5000)),
        "digits",
    ),
    "place at infinity": (screen(action={"action": "click", "x": 1e400, "y": 4}), "no number that could be used"),
    "place of 400 digits": (screen(action={"action": "click", "x": 10**400, "y": 4}), "no number that could be used"),
    "step of 30 digits": (screen(episode_id="e", step=10**30), "has no place in its episode"),
    "image_size of 400 digits": (screen(image_size=[10**400, 1]), "not a size"),
    "deep line": (b"[" * 100_000, "nested too deep"),
    "deep action": (screen(action=nested(DEEP // 4)), "names no action"),
    "deep instruction": (screen(instruction=nested(DEEP // 4)), "there is no task; write it as text"),
    "half a character": (screen(instruction="\ud800"), "is half a character"),
    "half a character to type": (screen(action={"action": "type", "text": "\ud800"}), "half a character"),
    "NUL in a path": (screen(screenshot="\0"), "holds a NUL character"),
    "key twice": (b'{"screenshot": "a.png", "screenshot": "b.png"}', "is there twice"),
    "kinds that cannot be compared": (screen(actions=[{}]), "not actions of the tool"),
    "split that cannot be compared": (screen(split=[1]), "split is [1]"),
}
SAFARI = {
    "5,000 digits": (b'{"turn": ' + b"7" * 5000 + b"}", "digits"),
    "deep line": (b'{"tool_calls": ' + b"[" * 100_000, "nested too deep"),
    "deep arguments": ({"tool_calls": [{"name": "move", "args": nested(DEEP // 4)}]}, "one another"),
    "deep result": ({"tool_results": [{"name": "move", "result": nested(DEEP // 4)}]}, "one another"),
    "half a character": ({"system_prompt": "\ud800"}, "is half a character"),
    "NUL in a path": ({"image_file": "\0.png"}, "holds a NUL character"),
    "key twice": (b'{"turn": 1, "turn": 2}', "is there twice"),
    "infinity": ({"tool_calls": [{"name": "move", "args": {"actions": [{"direction": "UP", "steps": 1e400}]}}]}, "inf"),
    "calls that are a number": ({"tool_calls": 3}, "tool_calls is '3'"),
    "name that is a list": ({"tool_calls": [{"name": ["catch"]}]}, "not a call"),
}
TURN = {
    "mission": "find it",
    "system_prompt": "You walk.",
    "context_text": "Mission: find it",
    "image_file": "a.png",
    "tool_calls": [{"name": "move", "args": {"actions": [{"direction": "UP", "steps": 1}]}}],
    "tool_results": [{"name": "move", "result": {}}],
    "thought_text": "It is up.",
}


def good(kind: str, number: int) -> dict:
    if kind == "chat":
        return chat(f"good {number}")
    if kind == "computer":
        return screen(instruction=f"good {number}")
    return {"episode_id": f"good{number}", "turn": 0, **TURN}


def cases():
    for kind, faults in (("chat", CHAT), ("computer", COMPUTER), ("safari", SAFARI)):
        for name in faults:
            yield pytest.param(kind, *faults[name], id=f"{kind}: {name}")


@pytest.fixture
def read(tmp_path):
    """Write lines (objects, or bytes) beside a picture; the report of a run's data, and its rejects."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")

    def read(kind: str, *lines: object) -> tuple[dict, list[dict]]:
        path = tmp_path / "data.jsonl"
        content = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(content) + b"\n")
        source = SourceConfig(path=str(path), kind=kind)
        config = DataConfig(sources=(source,), cache_dir=str(tmp_path / "cache"), eval_fraction=0.0)
        (report,) = build_rows(config, PromptConfig(format="native")).report["sources"]
        with open(report["rejects_path"], encoding="utf-8") as file:
            return report, [json.loads(line) for line in file]

    return read


@pytest.mark.parametrize(("kind", "line", "message"), cases())
def test_a_bad_line_is_rejected_with_its_place_and_the_rest_is_read(read, kind, line, message):
    if kind == "safari" and isinstance(line, dict):
        line = {"episode_id": "bad", "turn": 0} | TURN | line
    started = time.process_time()
    report, rejects = read(kind, good(kind, 1), line, good(kind, 2))
    assert all(reason.encode() and "\x1b" not in reason for reason in report["reject_reasons"])  # can be printed
    assert time.process_time() - started < MAX_SECONDS
    assert report["num_rows"] == 2 and len(rejects) == 1
    assert rejects[0]["source"].endswith("data.jsonl:2")
    assert message in rejects[0]["message"]


@pytest.mark.parametrize("kind", ["chat", "computer", "safari"])
@pytest.mark.parametrize(
    "marker", [{"weight": 0}, {"loss": False}, {"train": False}, {"label": False}, {"weight": 0.5}]
)
def test_a_row_that_is_marked_as_not_to_be_learned_like_others_is_no_row(read, kind, marker):
    report, rejects = read(kind, good(kind, 1), good(kind, 2) | marker, good(kind, 3) | {"weight": 1, "train": True})
    assert report["num_rows"] == 2 and len(rejects) == 1
    assert f"{next(iter(marker))} of the row is" in rejects[0]["message"]


@pytest.mark.parametrize("kind", ["chat", "computer", "safari"])
def test_a_byte_order_mark_is_no_fault(read, kind):
    first = b"\xef\xbb\xbf" + json.dumps(good(kind, 1)).encode()
    report, rejects = read(kind, first, good(kind, 2))
    assert report["num_rows"] == 2 and rejects == []


def test_a_fault_that_nobody_foresaw_is_a_reject_that_names_it(read, monkeypatch):
    def fail(message):
        if message["content"] == "hi":
            raise ZeroDivisionError("what nobody foresaw")
        return iter([("text", message["content"] or "")])

    monkeypatch.setattr("qwenvl_agent.data.readers.chat.steps.parts", fail)
    _, rejects = read("chat", good("chat", 1), chat(), good("chat", 2))
    assert [(r["source"][-1], "ZeroDivisionError (what nobody foresaw)" in r["message"]) for r in rejects] == [
        ("2", True)
    ]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), MemoryError()])
def test_what_the_machine_lacks_is_no_reject(read, monkeypatch, fault):
    def fail(message):
        raise fault

    monkeypatch.setattr("qwenvl_agent.data.readers.chat.steps.parts", fail)
    with pytest.raises(type(fault)):
        read("chat", good("chat", 1))


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        (prop(**{"$ref": "#/$defs/Text"}) | {"$defs": {"Text": {"type": "string"}}}, {"x": "a"}),
        (
            {"type": "object", "properties": {"x": {"type": "string"}, "below": {"$ref": "#"}}},
            {"x": "a", "below": {"x": "b", "below": {}}},
        ),
        (prop(pattern="^[\\u4e00-\\u9fa5]{2}$"), {"x": "老虎"}),
        ({"patternProperties": {"^x_": {"type": "integer"}}, "additionalProperties": False}, {"x_1": 3}),
        (prop(uniqueItems=True), {"x": [1, True, "1", [1], {"a": 1}, {"a": 2}]}),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", **prop(enum=[{"$ref": "http://x"}])},
            {"x": {"$ref": "http://x"}},
        ),
        (prop(multipleOf=0.5), {"x": 10**300}),
        (prop(**{"$ref": "#/$defs/a%20b~1c"}) | {"$defs": {"a b/c": {"type": "string"}}}, {"x": "a"}),
    ],
    ids=range(8),
)
def test_what_looks_like_such_a_line_and_is_none_is_read(read, parameters, arguments):
    report, rejects = read("chat", chat(parameters=parameters, arguments=arguments))
    assert rejects == [] and report["num_rows"] == 1


def test_a_worlds_schema_is_not_fetched_either():
    far = Tool("f", "", prop(**{"$ref": "http://127.0.0.1:9/x"}))
    with pytest.raises(ValueError, match=f"tool f: .*{NOT_FETCHED}"):
        check_call(ToolCall("f", {"x": 1}), (far,))


def test_a_list_goes_on_behind_an_item_that_is_refused(tmp_path):
    """A .json file of the computer kind: only brackets that do not close end it."""
    from qwenvl_agent.data.readers.computer import read_records

    path = tmp_path / "data.json"
    path.write_text('[{"a": 1},\n{"a": 1, "a": 2},\n{"a": ' + "7" * 5000 + '},\n{"a": 2},\n{"a": [}, {"a": 3}]')
    found = list(read_records(path))
    assert [(source.rpartition(":")[2], str(value)[:30]) for source, value in found] == [
        ("1", "{'a': 1}"),
        ("2", "key 'a' is there twice in one "),
        ("3", "a number has thousands of digi"),
        ("4", "{'a': 2}"),
        ("5", "not JSON (Expecting value, col"),
    ]
