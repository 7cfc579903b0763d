"""Calls that stand as text in a chat file: every spelling gives the same turn, nothing is lost, and nothing is guessed."""

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from test_families import OTHER

from qwenvl_agent import families
from qwenvl_agent.containers import Record
from qwenvl_agent.data.readers.chat import read_conversation
from qwenvl_agent.data.readers.chat.written_calls import read_written
from qwenvl_agent.families import DEFAULT
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.near_json import json_text
from qwenvl_agent.picture_store import PictureFolder
from qwenvl_agent.schema import Tool, ToolCall, ToolResult, Turn

MOVE = {
    "name": "move",
    "parameters": {
        "type": "object",
        "properties": {
            "actions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"direction": {"type": "string"}, "steps": {"type": "integer"}},
                    "required": ["direction", "steps"],
                },
            }
        },
        "required": ["actions"],
        "additionalProperties": False,
    },
}
NOTE = {
    "name": "update_notepad",
    "parameters": {"type": "object", "properties": {"content": {"type": "string"}}, "required": ["content"]},
}
WAIT = {"name": "wait", "parameters": {"type": "object", "properties": {}}}
TOOLS = [MOVE, NOTE, WAIT]
ARGUMENTS = {"actions": [{"direction": "RIGHT", "steps": 2}]}
CALLS = (ToolCall("move", ARGUMENTS),)
TWO_CALLS = (ToolCall("update_notepad", {"content": "plan: right"}), *CALLS)
TURN = Turn("I go right.", CALLS)
JSON = json.dumps(ARGUMENTS)
AS_OBJECT = f'{{"name": "move", "arguments": {JSON}}}'


def read(text, *others, tools=TOOLS, **message):
    messages = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": text, **message}, *others]
    record = Record("chat.jsonl:1", {"messages": messages, "tools": tools})
    return list(read_conversation(record, PictureFolder(Path())))


def refusal(*arguments, **options):
    with pytest.raises(ValueError, match="messages") as caught:
        read(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        (f"Thought: I go right.\nAction: move({JSON})", "action_lines"),  # the first seed's own form
        ('Thought: I go right.\nAction: move(actions=[{"direction": "RIGHT", "steps": 2}])', "action_lines"),
        (f"I go right.\nAction: {AS_OBJECT}", "action_lines"),
        (f"Thought: I go right.\nAction: move\nAction Input: {JSON}", "react"),
        (f"Thought: I go right.\nAction: move\nAction Input:\n```json\n{JSON}\n```\n", "react"),
        (f"I go right.\n```json\n{AS_OBJECT}\n```", "json"),
        (f"I go right.\n```\n[{AS_OBJECT}]\n```", "json"),
        (f"I go right.\n{AS_OBJECT}", "json"),
        (f'I go right.\n{{"arguments": {JSON}, "name": "move"}}', "json"),
        (f'I go right.\n{{"type": "function", "function": {AS_OBJECT}}}', "json"),
        (f'I go right.\n{{"name": "move", "parameters": {JSON}}}', "json"),
        (f'I go right.\n<tool_call>\n{{"type": "function", "function": {AS_OBJECT}}}\n</tool_call>', "tags"),
        (f"I go right.\n<tool_call>\n[{AS_OBJECT}]\n</tool_call>", "tags"),
        (f'Thought: I go right.\nAction:\n```\n{{"action": "move", "action_input": {JSON}}}\n```', "json"),
        (f"I go right.\n<tool_call>\n{AS_OBJECT}\n</tool_call>", "tags"),
        (f"<think>\nI go right.\n</think>\n\n<tool_call>{AS_OBJECT}</tool_call>", "tags"),
        (f"I go right.\n✿FUNCTION✿: move\n✿ARGS✿: {JSON}\n✿RESULT✿", "qwen_agent_marks"),
        (f"I go right.✿FUNCTION✿: move\n✿ARGS✿: {JSON}", "qwen_agent_marks"),
        (f"I go right.\nmove({JSON})", "lines"),
        (f"I go right.\n```python\nmove(actions={JSON[12:-1]})\n```", "lines"),
        (f"Thought: I go right.\nAction:\n```\nmove({JSON})\n```", "action_lines"),
    ],
)
def test_every_spelling_is_the_same_turn(text, notes):
    (row,) = read(text)
    assert (row.step.turn, row.notes) == (TURN, (f"calls_read_from_{notes}",))


@pytest.mark.parametrize(
    "text",
    [
        f'Action: update_notepad({{"content": "plan: right"}})\nAction: move({JSON})',
        f'Action: update_notepad({{"content": "plan: right"}}), move({JSON})',
        f'Action: update_notepad\nAction Input: {{"content": "plan: right"}}\nAction: move\nAction Input: {JSON}',
        f'```json\n[{{"name": "update_notepad", "arguments": {{"content": "plan: right"}}}}, {AS_OBJECT}]\n```',
        f'{{"name": "update_notepad", "arguments": {{"content": "plan: right"}}}}\n{AS_OBJECT}',
        f'✿FUNCTION✿: update_notepad\n✿ARGS✿: {{"content": "plan: right"}}\n✿FUNCTION✿: move\n✿ARGS✿: {JSON}',
        '<tool_call>{"name": "update_notepad", "arguments": {"content": "plan: right"}}\n' + AS_OBJECT + "</tool_call>",
    ],
)
def test_several_calls_keep_their_order(text):
    (row,) = read(text)
    assert row.step.turn == Turn(tool_calls=TWO_CALLS)


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("Action: move([{'direction': 'RIGHT', 'steps': 2}])", ("single_quotes", "list_arguments_wrapped")),
        ('Action: move({"actions": [{"direction": "RIGHT", "steps": "2"}]})', ("string_number",)),
        ('Action: move({"direction": "RIGHT", "steps": 2})', ("missing_actions_key",)),
        ('{"name": "move", "arguments": {"actions": [{"direction": "RIGHT", "steps": 2,}]}}', ("trailing_comma",)),
        (f"<tool_call>{AS_OBJECT.replace(chr(34), chr(39))}</tool_call>", ("single_quotes",)),
    ],
)
def test_what_was_mended_is_counted_by_name(text, mended):
    (row,) = read(text)
    assert row.step.turn.tool_calls == CALLS
    assert {note for note in row.notes if "mended" in note} == {f"call_mended_{name}" for name in mended}


def test_the_sentence_of_a_hybrid_turn_is_left_out_by_name():
    text = f'Thought: I go right.\nAction: "I go two tiles."\n<tool_call>\n{AS_OBJECT}\n</tool_call>'
    (row,) = read(text)
    assert row.step.turn == TURN and row.notes == ("calls_read_from_tags", "action_line_left_out")
    (row,) = read("Thought: I go right.\nAction: move", tool_calls=[json.loads(AS_OBJECT)])
    assert row.step.turn == TURN and row.notes == ("action_line_left_out",)


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        ("I am there.", False),
        ("Thought: I am there.\nFinal Answer: yes", False),
        ('{"answer": 4}', False),
        ("[1, 2]", False),
        ("I would move(2) but will not.", True),
        ("Action: fly", True),
        ("**Action:** move(2)", True),
        ("Action： functions.move({})", True),
        ("Action: I move to the right.", True),
        ('It is {"name": "move"}.', True),
        ('{"name": "Alice", "age": 3}', True),
        ("✿RETURN✿: I am there.", True),
    ],
)
def test_words_stay_words_and_those_like_a_call_are_counted(text, noted):
    (row,) = read(text)
    assert row.step.turn == Turn(text=text)
    assert row.notes == (("like_a_call_kept_as_text",) if noted else ())


@pytest.mark.parametrize("text", [f"Action: move({JSON})", AS_OBJECT, "Action: click(start_box='(100,200)')"])
def test_without_tools_words_are_words(text):
    (row,) = read(text, tools=[])
    assert row.step.turn == Turn(text=text) and row.notes == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"Action: move({JSON})\nThen I wait.", "has text after a call: no format writes it there"),
        (f"Action: move({JSON})\nObservation: moved\nThought: there", "what a tool answered would be learned"),
        (
            f"Thought: x\nAction: move\nAction Input: {JSON}\nObservation: moved",
            "what a tool answered would be learned",
        ),
        (f"✿FUNCTION✿: move\n✿ARGS✿: {JSON}\n✿RESULT✿: moved", "has text after a call"),
        (f"```json\n{AS_OBJECT}\n```\nThat moves.", "has text after a call"),
        (f"<tool_call>{AS_OBJECT}</tool_call> so", "has text after a call"),
        ('Action: move({"actions": [{"direction": "RIGHT"', "that cannot be read (Action: name(...): unclosed_call)"),
        ("Action: move(", "that cannot be read (Action: name(...): unclosed_call)"),
        ("Action: move(actions=RIGHT)", "that cannot be read (Action: name(...): json_error)"),
        ("Action: move[RIGHT]", "that cannot be read (Action: name(...): json_error)"),
        ("Action: move\nAction Input: two to the right", "that cannot be read (Action:, Action Input: json_error)"),
        ("✿FUNCTION✿: move", "that cannot be read (✿FUNCTION✿, ✿ARGS✿: unclosed_call)"),
        ("✿FUNCTION✿: move\n✿ARGS✿: right", "that cannot be read (✿FUNCTION✿, ✿ARGS✿: json_error)"),
        ('{"name": "move", "arguments": {"actions": [}', "is not whole (missing_brace)"),
        ('{"name": "move", "arguments": {"actions": [], "actions": []}}', "that cannot be read (JSON: json_error)"),
        ("<tool_call>{x}</tool_call>", "<tool_call> holds no call that can be read (json_error)"),
        ('<tool_call>{"arguments": {}}</tool_call>', "<tool_call> holds no call that can be read (bad_name)"),
        (
            '<tool_call>{"name": "move", "arguments": {}, "more": 1}</tool_call>',
            "<tool_call> holds no call that can be read (bad_arguments)",
        ),
        (
            "<function=move><parameter=actions>[]</parameter></function>",
            "has a call as an element (<function=move><parameter=actions>[]</pa)",
        ),
        ("Action: fly(height=3)", "calls 'fly', which is not one of the row's tools: use one of move"),
        ("Action: click(start_box='(100,200)')", "calls 'click', which is not one of the row's tools"),
        ("Action: finished()", "calls 'finished', which is not one of the row's tools"),
        ('{"name": "fly", "arguments": {"height": 3}}', "calls 'fly', which is not one of the row's tools"),
        ("Action: fly\nAction Input: {}", "calls 'fly', which is not one of the row's tools"),
        (f"I call {AS_OBJECT}", "has a call of 'move' among its words: it would be learned as words"),
        (f"<functioncall> {AS_OBJECT}", "has a call of 'move' among its words"),
        (f"[TOOL_CALLS] [{AS_OBJECT}]", "has a call of 'move' among its words"),
        ("Action: move({})", "arguments of move do not fit its schema ('actions' is a required property)"),
        ("Action: move", "arguments of move do not fit its schema ('actions' is a required property)"),
        (f"Action: go\nand on\n<tool_call>{AS_OBJECT}</tool_call>", "has lines between Action: and its calls"),
        (f"Action: move({JSON})\n<tool_call>{AS_OBJECT}</tool_call>", "has calls in its text besides its calls"),
        ("<think>Hm.</think>I am there.", "has a marked thought without a call: no format writes it"),
    ],
)
def test_what_is_not_whole_or_not_clear_is_refused(text, expected):
    assert expected in refusal(text)


@pytest.mark.parametrize(
    "text", [f"Action: move({JSON})", f"```json\n{AS_OBJECT}\n```", f"<tool_call>{AS_OBJECT}</tool_call>"]
)
def test_calls_that_are_given_twice_are_refused(text):
    assert "has calls in its text besides its calls" in refusal(text, tool_calls=[json.loads(AS_OBJECT)])


def test_results_are_placed_with_calls_that_were_read():
    text = f"Thought: I go right.\nAction: move\nAction Input: {JSON}"
    done = {"role": "assistant", "content": "I am there."}
    for answer in (
        {"role": "user", "content": 'Observation: {"moved": true}'},
        {"role": "user", "content": [{"type": "text", "text": 'Observation:\n{"moved": true}'}]},
        {"role": "tool", "content": '{"moved": true}'},
        {"role": "tool", "content": '<tool_response>\n{"moved": true}\n</tool_response>'},
    ):
        first, second = read(text, answer, done)
        assert first.step.turn == TURN and first.step.results == (ToolResult("move", {"moved": True}),)
        assert second.step.observation.text == "" and second.step.turn == Turn(text="I am there.")
    first, second = read(text, {"role": "user", "content": "Observe: this"}, done)
    assert first.step.results == () and second.step.observation.text == "Observe: this"
    first, second = read("I wait.", {"role": "user", "content": "Observation: this"}, done)
    assert second.step.observation.text == "Observation: this"


def test_several_results_in_one_message():
    text = f'Action: update_notepad({{"content": "plan: right"}})\nAction: move({JSON})'
    results = "<tool_response>\nnoted\n</tool_response>\n<tool_response>\nmoved\n</tool_response>"
    (row,) = read(text, {"role": "tool", "content": results})
    assert row.step.results == (
        ToolResult("update_notepad", {"result": "noted"}),
        ToolResult("move", {"result": "moved"}),
    )
    one = {"role": "user", "content": "Observation: noted and moved"}
    assert "messages[2] is one Observation: for 2 calls" in refusal(text, one)
    cut = {"role": "tool", "content": "<tool_response>noted</tool_response> and"}
    (row,) = read(text, cut)
    assert row.step.results[0].content == {"result": "<\\tool_response>noted<\\/tool_response> and"}


def test_blocks_of_any_family_are_read(monkeypatch):
    other = replace(OTHER, model_type="other")
    monkeypatch.setitem(families.FAMILIES, "other", other)
    text = "I go right.\n\n" + other.calls.write("move", ARGUMENTS)
    (row,) = read(text)
    assert row.step.turn == TURN and row.notes == ("calls_read_from_tags",)
    (row,) = read(f"I go right.\n<tool_call>{AS_OBJECT}</tool_call>")
    assert row.step.turn == TURN


def as_plain(call):
    return FORMATS["plain"].to_message(Turn(tool_calls=(call,)))["content"]


def as_object(call):
    return f'{{"name": "{call.name}", "arguments": {json_text(call.arguments)}}}'


SPELLINGS = {
    "plain": lambda calls: "\n".join(map(as_plain, calls)),
    "positional": lambda calls: "\n".join(f"Action: {c.name}({json_text(c.arguments)})" for c in calls),
    "react": lambda calls: "\n".join(f"Action: {c.name}\nAction Input: {json_text(c.arguments)}" for c in calls),
    "fence": lambda calls: "```json\n" + "\n".join(map(as_object, calls)) + "\n```",
    "list": lambda calls: f"[{', '.join(map(as_object, calls))}]",
    "bare": lambda calls: "\n".join(map(as_object, calls)),
    "tags": lambda calls: DEFAULT.calls.between.join(DEFAULT.calls.write(c.name, c.arguments) for c in calls),
    "qwen_agent": lambda calls: "\n".join(f"✿FUNCTION✿: {c.name}\n✿ARGS✿: {json_text(c.arguments)}" for c in calls),
}
ANY = tuple(Tool(name, "", {"type": "object"}) for name in ("move", "final-answer", "a.b_c"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def written_turns(draw) -> Turn:
    """Several calls with any arguments that a call may have, and a thought of plain words."""
    names = st.sampled_from([tool.name for tool in ANY])
    # A positional object is known by having arguments.
    pairs = st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,5}", fullmatch=True), VALUES, min_size=1, max_size=3
    )
    thought = draw(st.sampled_from(["", "I go right.", "두 칸 오른쪽으로 간다.\n그리고 기다린다."]))
    try:
        return Turn(thought, tuple(ToolCall(draw(names), draw(pairs)) for _ in range(draw(st.integers(1, 3)))))
    except ValueError:  # half a character, or a control token
        assume(False)
        raise


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(turn=written_turns())
@example(turn=Turn("", (ToolCall("move", {"a": "✿FUNCTION✿"}),)))
@example(turn=Turn("", (ToolCall("move", {"a": "```\n", "b": "Action: move(\n✿ARGS✿"}), ToolCall("move", {"a": [{}]}))))
def test_what_is_written_in_a_spelling_is_read_back(spelling, turn):
    written = SPELLINGS[spelling](turn.tool_calls)
    text = f"Thought: {turn.thought}\n{written}" if turn.thought else written
    found = read_written(text, ANY, "messages[1]")
    assert found.thought == turn.thought
    assert json.dumps([[c.name, c.arguments] for c, _ in found.calls]) == json.dumps(
        [[c.name, c.arguments] for c in turn.tool_calls]
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(turn=written_turns(), cut=st.floats(0, 1))
def test_a_cut_call_is_never_another_call(spelling, turn, cut):
    """Of one call cut off anywhere: it is refused or words; or nothing but an end mark was lost."""
    turn = Turn(tool_calls=turn.tool_calls[:1])
    written = SPELLINGS[spelling](turn.tool_calls)
    text = written[: int(len(written) * cut)]
    try:
        found = read_written(text, ANY, "messages[1]")
    except ValueError:
        return
    assert not found.calls or found.calls[0][0] in (turn.tool_calls[0], ToolCall(turn.tool_calls[0].name, {}))


@pytest.mark.parametrize(
    "fragment",
    ["Action: ", "move(", "{\n", '{"name": "move"\n', "[{", "a", "\n", "```\n", "✿FUNCTION✿", "Action Input:"],
)
def test_reading_takes_time_in_proportion_to_length(fragment):
    tools = tuple(map(Tool.from_json, TOOLS))
    text = fragment * (2**16 // len(fragment))
    start = time.process_time()
    with contextlib.suppress(ValueError):
        read_written(text, tools, "messages[1]")
    assert time.process_time() - start < 1.0
