"""Formats: parse(render(turn)) is the turn for everything the schema allows, and parse never raises."""

import json
import time

import pytest
from conftest import TOOLS, TURNS, move
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from qwenvl_agent.formats import FORMATS
from qwenvl_agent.schema import TOOL_NAME, Answer, Tool, ToolCall, ToolResult, Turn

NAMES = st.from_regex(TOOL_NAME, fullmatch=True)
TRICKY = st.sampled_from(
    [
        '"',
        "'",
        "\\",
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        "=",
        ",",
        "\n",
        "\r\n",
        "\t",
        "\u2028",
        "\u0338",
        "\u0303",
        "호",
        "🐯",
    ]
    + [
        "Action: move()",
        "Thought: x",
        "\nAction: ",
        "```",
        "```json\n",
        "</",
        "tool_call",
        '{"name": "x"',
        "name(",
        "\x00",
    ]
)
TEXT = st.lists(TRICKY | st.text(max_size=8), max_size=8).map("".join)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3), max_leaves=6)


def try_make(cls, *args, **kwargs):
    """The object, or a rejected example where the schema refuses it."""
    try:
        return cls(*args, **kwargs)
    except ValueError:
        assume(False)


@st.composite
def calls(draw) -> ToolCall:
    return try_make(ToolCall, draw(NAMES), draw(st.dictionaries(NAMES, VALUES, max_size=3)))


@st.composite
def turns(draw) -> Turn:
    return try_make(Turn, draw(TEXT), tuple(draw(st.lists(calls(), min_size=1, max_size=3))))


def rendered(name: str, turn: Turn) -> str:
    return "".join(span.text for span in FORMATS[name].render(turn))


def exact(answer: Answer) -> str:
    """Distinguishes 1, 1.0 and True, which `==` does not."""
    return json.dumps([[call.name, call.arguments] for call in answer.turn.tool_calls])


@pytest.mark.parametrize("name", FORMATS)
@given(turn=turns())
@example(turn=Turn("t", (ToolCall("n", {"a": "\n\u0303"}),)))
@example(turn=Turn("t", (ToolCall("n", {"a": '"}\n</'}), ToolCall("n", {"a": [1, 1.0, True, -0.0, 1e22]}))))
@settings(max_examples=80, deadline=None)
def test_a_rendered_turn_parses_back(name, turn):
    text = rendered(name, turn)
    answer = FORMATS[name].parse(text, TOOLS)
    assert answer == Answer(FORMATS[name].project(turn), text)
    assert exact(answer) == exact(Answer(turn))


@pytest.mark.parametrize("name", FORMATS)
@given(text=st.text(min_size=1))
@settings(max_examples=80, deadline=None)
def test_free_text_parses_back(name, text):
    turn = try_make(Turn, text=text)
    assume(turn.text and not any(mark in turn.text for mark in ("Thought:", "Action:", "(", "{")))
    assert FORMATS[name].parse(rendered(name, turn), TOOLS) == Answer(turn, rendered(name, turn))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("turn", TURNS)
def test_render_labels_thought_call_and_text(name, turn):
    parts = [span.part for span in FORMATS[name].render(turn)]
    if turn.text:
        assert parts == ["text"]
    else:
        has_thought = FORMATS[name].project(turn).thought
        assert parts == (["thought"] if has_thought else []) + ["call"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_rendering_is_stable_under_nfc(name):
    """The tokenizer composes; an escape followed by a combining mark would come back as broken JSON."""
    import unicodedata

    text = rendered(name, Turn("t", (ToolCall("n", {"a": "\n\u0303"}),)))
    assert FORMATS[name].parse(unicodedata.normalize("NFC", text), ()).turn.tool_calls[0].arguments == {"a": "\n\u0303"}


MUTATIONS = st.sampled_from(
    [
        '"',
        "'",
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ",",
        ":",
        "\n",
        "<tool_call>",
        "</tool_call>",
        "Action:",
        "Thought:",
        "```",
    ]
    + [
        "<|im_end|>",
        "<|im_start|>",
        "<think>",
        "None",
        "NaN",
        "1e999",
        "9" * 5000,
        "[" * 3000,
        "\ud800",
        "\\u0000",
        "=",
    ]
)


@pytest.mark.parametrize("name", FORMATS)
@given(turn=turns() | st.sampled_from(TURNS), data=st.data())
@settings(max_examples=80, deadline=None)
def test_parse_never_raises_on_damaged_renderings(name, turn, data):
    text = rendered(data.draw(st.sampled_from(list(FORMATS))), turn)
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 5)))
        text = text[:start] + data.draw(MUTATIONS) + text[end:]
    check_answer(FORMATS[name].parse(text[: data.draw(st.integers(0, len(text)))], TOOLS))


@pytest.mark.parametrize("name", FORMATS)
@given(text=st.text() | st.lists(MUTATIONS | TRICKY).map("".join))
@settings(max_examples=80, deadline=None)
def test_parse_never_raises_on_any_text(name, text):
    check_answer(FORMATS[name].parse(text, TOOLS))


ERRORS = {
    "unclosed_thought",
    "empty",
    "control_token",
    "no_call",
    "unclosed_call",
    "json_error",
    "bad_name",
    "bad_arguments",
}


def check_answer(answer: Answer) -> None:
    assert (answer.error in ERRORS and answer.turn == Turn() and not answer.repairs) or (
        not answer.error and answer.turn != Turn()
    )
    for fmt in FORMATS.values():  # what was read can be written into the next prompt
        "".join(span.text for span in fmt.render(answer.turn)).encode("utf-8", "surrogatepass")


MOVE_BLOCK = (
    '<tool_call>\n{"name": "move", "arguments": {"actions": [{"direction": "RIGHT", "steps": 2}]}}\n</tool_call>'
)
MOVE_LINE = 'Action: move(actions=[{"direction": "RIGHT", "steps": 2}])'
GO = Turn("Go.", (move(),))
BARE = Turn(tool_calls=(move(),))


MOVE_ARGUMENTS = '{"actions": [{"direction": "RIGHT", "steps": 2}]}'
MOVE_JSON = f'{{"name": "move", "arguments": {MOVE_ARGUMENTS}}}'
TWICE = Turn(tool_calls=(move(), move()))


def block(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


@pytest.mark.parametrize(
    "name, text, turn, repairs",
    [
        ("native", f"Go.\n{MOVE_BLOCK}<|im_end|>", GO, ()),
        ("native", f"Go.\n{MOVE_BLOCK}\nDone!", GO, ("text_after_call",)),
        ("native", f"{MOVE_BLOCK} and\n{MOVE_BLOCK}", Turn(tool_calls=(move(), move())), ("text_between_calls",)),
        ("native", f"Go.\n{MOVE_BLOCK.removesuffix('</tool_call>')}", GO, ("missing_close_tag",)),
        ("native", f"Go.\n{MOVE_BLOCK.removeprefix('<tool_call>')}", GO, ("missing_open_tag",)),
        ("native", f"Go.\n{MOVE_BLOCK.replace('}}', '}')}", GO, ("missing_brace",)),
        ("native", f"Go.\n{MOVE_BLOCK.replace('}]}}', ']}}')}", GO, ("missing_brace",)),
        ("native", f"Go.\n{MOVE_BLOCK.replace('}}', '}}}')}", GO, ("extra_brace",)),
        ("native", f"Go.\n{MOVE_BLOCK.replace(chr(34), chr(39))}", GO, ("single_quotes",)),
        ("native", f"Go.\n{MOVE_BLOCK.replace('2}]', '2,},]')}", GO, ("trailing_comma",)),
        ("native", f"Go.\n```json\n{MOVE_BLOCK}\n```", GO, ("code_fence",)),
        ("native", f"Thought: Go.\n{MOVE_BLOCK}", GO, ("marker_in_thought",)),
        ("native", f"Thought: Go.\n{MOVE_LINE}", GO, ("plain_call_in_native", "marker_in_thought")),
        (
            "native",
            block('{"name": "declare_done"}'),
            Turn(tool_calls=(ToolCall("declare_done", {}),)),
            ("missing_arguments",),
        ),
        (
            "native",
            block('{"name": "move", "arguments": "{\\"actions\\": [{\\"direction\\": \\"RIGHT\\", \\"steps\\": 2}]}"}'),
            BARE,
            ("arguments_as_string",),
        ),
        (
            "native",
            block('{"name": "move", "arguments": [{"direction": "RIGHT", "steps": 2}]}'),
            BARE,
            ("list_arguments_wrapped",),
        ),
        (
            "native",
            block('{"name": "move", "arguments": {"direction": "RIGHT", "steps": "2"}}'),
            BARE,
            ("missing_actions_key", "string_number"),
        ),
        (
            "native",
            block('{"name": "move", "arguments": {"actions": [{"direction": "RIGHT", "steps": 2.0}]}}'),
            BARE,
            ("string_number",),
        ),
        (
            "native",
            block('{"name": "x", "arguments": {"a": True, "b": None}}'),
            Turn(tool_calls=(ToolCall("x", {"a": True, "b": None}),)),
            ("python_literals",),
        ),
        (
            "native",
            block('{"name": "update_notepad", "arguments": {"content": "a\nb"}}'),
            Turn(tool_calls=(ToolCall("update_notepad", {"content": "a\nb"}),)),
            ("raw_newline",),
        ),
        ("no_thought", MOVE_BLOCK, BARE, ()),
        ("no_thought", f"Go.\n{MOVE_BLOCK}", BARE, ("text_before_call",)),
        ("plain", f"Thought: Go.\n{MOVE_LINE}<|im_end|>", GO, ()),
        ("plain", f"Go.\n{MOVE_LINE}", GO, ("missing_thought_marker",)),
        ("plain", f"Thought: Go.\n{MOVE_LINE.removeprefix('Action: ')}", GO, ("missing_action_marker",)),
        ("plain", f"Thought: Go.\n{MOVE_BLOCK}", GO, ("native_call_in_plain",)),
        ("plain", f"Thought: Go.\n{MOVE_LINE}\nDone!", GO, ("text_after_call",)),
        ("plain", f"{MOVE_LINE}\nand\n{MOVE_LINE}", Turn(tool_calls=(move(), move())), ("text_between_calls",)),
        ("plain", f"{MOVE_LINE}, {MOVE_LINE[8:]}", Turn(tool_calls=(move(), move())), ("missing_action_marker",)),
        ("plain", f"{MOVE_LINE[:-2]})", BARE, ("missing_brace",)),
        ("plain", MOVE_LINE[:-1], BARE, ("missing_brace",)),
        ("plain", f"{MOVE_LINE[:-1]}}})", BARE, ("extra_brace",)),
        ("plain", "Action: declare_done", Turn(tool_calls=(ToolCall("declare_done", {}),)), ("missing_parentheses",)),
        ("plain", f"```\n{MOVE_LINE}\n```", BARE, ("code_fence",)),
        (
            "plain",
            "Action: update_notepad('it\\'s \"here\"',)".replace("',)", "')"),
            Turn(tool_calls=(ToolCall("update_notepad", {"content": 'it\'s "here"'}),)),
            ("single_quotes", "positional_argument"),
        ),
        ("plain", 'Action: move([{"direction": "RIGHT", "steps": 2}])', BARE, ("list_arguments_wrapped",)),
        ("plain", 'Action: move(direction="RIGHT", steps=2,)', BARE, ("trailing_comma", "missing_actions_key")),
        ("hybrid", f'Thought: Go.\nAction: "move"\n{MOVE_BLOCK}', GO, ()),
        ("plain", f"Thought: \n{MOVE_LINE}", BARE, ("empty_thought",)),
        ("hybrid", f'Thought: Go.\nAction:  "move" \n{MOVE_BLOCK}', GO, ()),
        ("hybrid", f"Thought: Go.\nAction: click it\n{MOVE_BLOCK}", GO, ("other_action_line",)),
        ("hybrid", f"Thought: Go.\nAction: move\n{MOVE_BLOCK}", GO, ("other_action_line",)),
        ("hybrid", f'Thought: Go.\nAction: "move"\nso\n{MOVE_BLOCK}', GO, ("text_before_call",)),
        ("hybrid", f"Thought: Go.\n{MOVE_BLOCK}", GO, ("missing_action_marker",)),
        ("hybrid", f'Go.\nAction: "move"\n{MOVE_BLOCK}', GO, ("missing_thought_marker",)),
        ("hybrid", f"Thought: Go.\n{MOVE_LINE}", GO, ("plain_call_in_native",)),
        # what models call arguments, and where they put calls
        *(
            ("native", block(MOVE_JSON.replace("arguments", name)), BARE, ("renamed_arguments",))
            for name in ("parameters", "args", "params", "input", "kwargs")
        ),
        ("native", block(f'{{"function": {MOVE_JSON}}}'), BARE, ("nested_call",)),
        ("native", block(f'{{"type": "function", "function": {MOVE_JSON}}}'), BARE, ("nested_call", "dropped_key")),
        (
            "native",
            f'{{"type": "function", "function": {MOVE_JSON}}}',
            BARE,
            ("missing_open_tag", "nested_call", "dropped_key"),
        ),
        ("native", block(f'{{"id": "c1", {MOVE_JSON[1:]}'), BARE, ("dropped_key",)),
        ("native", block(f'{{"thought": "Go.", {MOVE_JSON[1:]}'), BARE, ("dropped_remark",)),
        ("native", block(f"[{MOVE_JSON}, {MOVE_JSON}]"), TWICE, ("list_of_calls",)),
        ("native", f"[{MOVE_JSON},\n {MOVE_JSON}]", TWICE, ("missing_open_tag", "list_of_calls")),
        ("native", f"Go.\n```json\n[{MOVE_JSON}]\n```", GO, ("code_fence", "missing_open_tag", "list_of_calls")),
        ("native", f"{MOVE_JSON}, {MOVE_JSON}", TWICE, ("missing_open_tag", "missing_close_tag")),
        (
            "native",
            f"```json\n{MOVE_JSON}\n```\nthen\n```json\n{MOVE_JSON}\n```",
            TWICE,
            ("code_fence", "missing_open_tag", "missing_close_tag", "text_between_calls"),
        ),
        ("native", f"{MOVE_BLOCK}\n{MOVE_JSON}", TWICE, ("text_after_call", "missing_open_tag")),
        ("plain", MOVE_JSON, BARE, ("missing_open_tag", "native_call_in_plain")),
        ("plain", f"Thought: Go.\nAction: move\nAction Input: {MOVE_ARGUMENTS}", GO, ("action_input",)),
        (
            "plain",
            f"Thought: Go.\nAction: move\nAction Input:\n{MOVE_ARGUMENTS}\nObservation: ok",
            GO,
            ("action_input", "text_after_call"),
        ),
        (
            "plain",
            'Action: update_notepad\nAction Input: "here"',
            Turn(tool_calls=(ToolCall("update_notepad", {"content": "here"}),)),
            ("action_input", "positional_argument"),
        ),
        (
            "hybrid",
            f"Thought: Go.\nAction: move\nAction Input: {MOVE_ARGUMENTS}",
            GO,
            ("plain_call_in_native", "action_input"),
        ),
        (
            "native",
            f'So {{"name": "Alice", "age": 3}}.\n{MOVE_JSON}',
            Turn('So {"name": "Alice", "age": 3}.', (move(),)),
            ("missing_open_tag",),
        ),
    ],
)
def test_repairs_are_named(name, text, turn, repairs):
    assert FORMATS[name].parse(text, TOOLS) == Answer(turn, text, repairs=repairs)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        'An example of JSON is {"name": "Alice", "age": 3}.',
        'A list: [{"name": "Alice"}, {"name": "Bob"}]',
        'Names are objects, {"name": {"first": "Al"}}.',
    ],
)
def test_json_in_prose_is_no_call(name, text):
    written = rendered(name, Turn(text=text))
    assert FORMATS[name].parse(written, TOOLS) == Answer(Turn(text=text), written)


def unique_keys(pairs: list) -> dict:
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


@pytest.mark.parametrize("piece", ['"id": 3, ', ', "b": 1', '"b": 1, ', " ", "\n", "}", "]", "{", ",", "0", "a", "\\n"])
@pytest.mark.parametrize("turn", [turn for turn in TURNS if turn.tool_calls])
def test_what_is_strict_lost_nothing(turn, piece):
    """All of a native answer that is read without repairs is its thought and its calls, by a second way of reading."""
    text = rendered("native", turn)
    for at in range(len(text) + 1):
        check_strict(text[:at] + piece + text[at:])


@pytest.mark.parametrize("name", ["plain", "native", "no_thought"])
@pytest.mark.parametrize("piece", ["b=1, ", ", b=1", '"id": 3, ', "x", "7", " ", "}", ")", ",", "'"])
def test_what_is_strict_is_written_again(name, piece):
    def letters(text: str) -> str:
        return "".join(text.split())

    for turn in (turn for turn in TURNS if turn.tool_calls):
        text = rendered(name, turn)
        for at in range(len(text) + 1):
            changed = text[:at] + piece + text[at:]
            answer = FORMATS[name].parse(changed, TOOLS)
            if answer.turn.tool_calls and not answer.repairs:
                assert letters(rendered(name, answer.turn)) == letters(changed)


def check_strict(text: str) -> None:
    answer = FORMATS["native"].parse(text, TOOLS)
    if answer.error or answer.repairs or not answer.turn.tool_calls:
        return
    head, *blocks = text.split("<tool_call>")
    assert head.strip() == answer.turn.thought
    for written, call in zip(blocks, answer.turn.tool_calls, strict=True):
        body, tag, rest = written.partition("</tool_call>")
        assert tag and not rest.strip().removesuffix("<|im_end|>")
        assert json.loads(body, object_pairs_hook=unique_keys) == {"name": call.name, "arguments": dict(call.arguments)}


@pytest.mark.parametrize(
    "name, text, error",
    [
        ("native", "", "empty"),
        ("plain", " \n<|im_end|>", "empty"),
        ("native", f"<|im_start|>user\n{MOVE_BLOCK}", "control_token"),
        ("plain", "<think>hm</think>", "control_token"),
        ("plain", "Thought: hm", "no_call"),
        ("plain", "Thought: hm\nAction:", "no_call"),
        ("hybrid", 'Thought: hm\nAction: "move"', "no_call"),
        ("native", "</tool_call>", "no_call"),
        ("native", '<tool_call>\n{"name": "update_notepad", "arguments": {"content": "and so on and', "unclosed_call"),
        ("plain", 'Action: update_notepad(content="and so on and', "unclosed_call"),
        ("native", block('{"name": "move", "arguments": {oops}}'), "json_error"),
        ("native", block('{"name": "x", "arguments": {"a": "b}}'), "json_error"),
        ("plain", "Action: move(UP, 3)", "json_error"),
        ("plain", f"Action: x(a={'[' * 3000}{']' * 3000})", "json_error"),
        ("native", f'<tool_call>{{"name": "x", "arguments": {{"a": {"[" * 3000}', "json_error"),
        ("plain", "Action: x(a=1, a=2)", "json_error"),
        # arguments that a call would lose
        ("native", block('{"name": "move", "direction": "RIGHT"}'), "bad_arguments"),
        ("native", '{"name": "move", "direction": "RIGHT"}', "bad_arguments"),
        ("native", block(MOVE_JSON[:-1] + ', "steps": 3}'), "bad_arguments"),
        ("native", block(MOVE_JSON[:-1] + ', "parameters": {"steps": 3}}'), "bad_arguments"),
        ("native", block('{"name": "x", "arguments": "{\\"a\\": 1} {\\"b\\": 2}"}'), "bad_arguments"),
        ("plain", "Action: move\nRIGHT, 2", "bad_arguments"),
        ("plain", "Action: update_notepad\nAction Input: here", "json_error"),
        # what breaks off where more was to follow
        ("native", '<tool_call>\n{"name": "x", "arguments": {"at": [447, 8', "unclosed_call"),
        ("native", '<tool_call>\n{"name": "x", "arguments": {"at": 447,', "unclosed_call"),
        ("plain", "Action: x(at=44", "unclosed_call"),
        ("plain", "Action: x(at=44,", "unclosed_call"),
        ("native", '{"name": "mo', "unclosed_call"),
        ("native", block('{"name": "x", "arguments": {"a": 1, "a": 2}}'), "json_error"),
        ("native", block("{'name': 'x', 'arguments': {'a': 1, 'a': 2}}"), "json_error"),
        ("plain", 'Action: x(a={"b": 1, "b": 2})', "json_error"),
        ("native", block('{"tool": "move"}'), "bad_name"),
        ("native", block('{"name": "go now", "arguments": {}}'), "bad_name"),
        ("native", block('{"name": "x", "arguments": 3}'), "bad_arguments"),
        ("native", block('{"name": "x", "arguments": {"a": NaN}}'), "bad_arguments"),
        ("native", block('{"name": "x", "arguments": {"a": "\\u003ctool_call>"}}'), "bad_arguments"),
        ("native", block('{"name": "x", "arguments": {"a": "\\ud800"}}'), "bad_arguments"),
    ],
)
def test_errors_are_named(name, text, error):
    assert FORMATS[name].parse(text, TOOLS) == Answer(Turn(), text, error=error)


def test_an_unknown_tool_is_no_error():
    text = block('{"name": "jump", "arguments": {"height": 3}}')
    assert FORMATS["native"].parse(text, TOOLS) == Answer(Turn(tool_calls=(ToolCall("jump", {"height": 3}),)), text)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "piece",
    [
        "Action: a\n",
        "Thought:",
        "\x0bThought:",
        " ",
        "\n",
        "{",
        "[",
        "```",
        "'\\",
        "<tool_call>",
        "<tool_call>{",
        "a(",
        "move(",
        "1",
    ]
    + ['Action: move(actions=[{"direction": "UP", "steps": 1}])\n', "``` " + " " * 50, "Action: x(a=1, ", "\n```\n"],
)
def test_an_endless_answer_is_read_in_no_time(name, piece):
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    check_answer(FORMATS[name].parse(text + "```", TOOLS))
    assert time.process_time() - start < 3


def test_plain_lists_the_tools_as_the_template_does():
    listed = FORMATS["plain"].instructions(TOOLS)
    for tool in TOOLS:
        assert json.dumps(tool.to_json(), ensure_ascii=False) in listed.splitlines()
    assert [fmt.instructions(()) for fmt in FORMATS.values()] == [""] * len(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_no_results_are_no_message(name):
    assert FORMATS[name].render_results(()) == []


def test_results_carry_the_json_of_each_call():
    results = (ToolResult("move", {"moved": True, "pos": {"x": 1}}), ToolResult("declare_done", {"status": "끝"}))
    assert [m["content"] for m in FORMATS["native"].render_results(results)] == [
        '{"moved": true, "pos": {"x": 1}}',
        '{"status": "끝"}',
    ]
    assert FORMATS["plain"].render_results(results) == [
        {
            "role": "user",
            "content": 'Result of move: {"moved": true, "pos": {"x": 1}}\nResult of declare_done: {"status": "끝"}',
        }
    ]


def test_a_tool_without_properties_is_fitted_to_nothing():
    bare = Tool("ping", "", {"type": "object"})
    text = block('{"name": "ping", "arguments": {"n": "2"}}')
    assert FORMATS["native"].parse(text, (bare,)).turn.tool_calls == (ToolCall("ping", {"n": "2"}),)


SCHEMAS = (
    *(True, False, {}, {"type": "array"}, {"type": "array", "items": True}, {"type": "array", "items": False}),
    *({"type": ["integer", "null"]}, {"type": "array", "items": {"$ref": "#"}}, {"$ref": "#"}, {"enum": [1]}),
    {"type": "array", "items": {"properties": {"b": True}, "required": ["b"]}},
)
ARGUMENTS = ('{"a": 1}', '{"b": 1}', "[1]", "[]", "{}", '"x"', "null", '{"a": [2.0, "3", {"b": "4"}]}', '"[1]"')


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_parse_never_raises_whatever_schema_a_tool_has(name, schema):
    for parameters in ({"properties": {"a": schema}, "required": ["a"]}, {"properties": {"a": schema}}):
        tools = (Tool("f", "", parameters),)
        for arguments in ARGUMENTS:
            call = f'{{"name": "f", "arguments": {arguments}}}'
            for text in (block(call), f"Action: f({arguments})", f"Action: f(a={arguments})"):
                check_answer(FORMATS[name].parse(text, tools))
