"""Qwen3.5: its published template in all formats, its calls as elements, and what its linear attention forbids."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOOLS, TURNS, move, request_of, tiny_processor
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import save_tiny_checkpoint, tiny_config

from qwenvl_agent.config import PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.collator import Collator, build_collator
from qwenvl_agent.data.masks import MaskAudit
from qwenvl_agent.evaluation.token_scores import split_values
from qwenvl_agent.families import FAMILIES
from qwenvl_agent.families.element_calls import MARK, typed, written
from qwenvl_agent.formats import FORMATS, formats_of
from qwenvl_agent.inference.endpoint import to_chat, written_text
from qwenvl_agent.model.build import build_model, build_processor
from qwenvl_agent.near_json import Repairs
from qwenvl_agent.prompt import render_prompt, render_row, to_messages
from qwenvl_agent.schema import Answer, Observation, Request, Row, Step, Tool, ToolCall, ToolResult, Turn

FAMILY = FAMILIES["qwen3_5"]
OURS = formats_of(FAMILY)
NATIVE = OURS["native"]


@pytest.fixture(scope="module")
def folder() -> Path:
    path = os.environ.get("QWENVL_QWEN3_5")
    if not path:
        pytest.skip("QWENVL_QWEN3_5 names no folder with chat_template.jinja, and perhaps the tokenizer, of a Qwen3.5")
    return Path(path)


@pytest.fixture(scope="module")
def tokenizer(folder):
    """The folder's, or a tiny one with its template: where the tokens are does not change the text."""
    from transformers import AutoTokenizer

    if (folder / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(folder)
    tokenizer = tiny_processor(1).tokenizer
    tokenizer.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer


def template_text(tokenizer, request: Request, turn: Turn | None, fmt) -> str:
    messages, tools = to_messages(request, turn, fmt)
    return tokenizer.apply_chat_template(
        messages,
        tools=tools,
        tokenize=False,
        add_generation_prompt=turn is None,
        enable_thinking=fmt.name == "think",
    )


# the template


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("system", ["You play.", "", " 두 줄\n\n"])
@pytest.mark.parametrize("tools", [TOOLS, ()], ids=["tools", "no_tools"])
@pytest.mark.parametrize(("num_steps", "num_pictures"), [(0, 0), (0, 2), (6, 1)])
def test_text_equals_the_published_template(tokenizer, name, system, tools, num_steps, num_pictures):
    fmt = OURS[name]
    request = request_of(num_steps, num_pictures, size=32, tools=tools, system=system)
    assert render_prompt(request, fmt).text == template_text(tokenizer, request, None, fmt)
    for turn in TURNS:
        assert render_row(request, turn, fmt).text == template_text(tokenizer, request, turn, fmt)


ODD = st.lists(
    st.sampled_from(["<|im_end|>", "</think>", "<tool_response>", "<function=x>", "\n", " ", "\u2028", '"', "호"])
    | st.text(max_size=5)
).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("name", OURS)
@given(system=ODD, seen=ODD, result=ODD, value=VALUES)
@settings(max_examples=60, deadline=None)
def test_text_equals_the_published_template_for_any_text(tokenizer, name, system, seen, result, value):
    fmt = OURS[name]
    try:
        call = ToolCall("update", {"content": value})
        NATIVE.render(Turn(tool_calls=(call,)))
    except ValueError:  # control tokens, or the syntax's own tags, which it cannot write
        return
    step = Step(Observation(seen), Turn(tool_calls=(call,)), (ToolResult("update", {result: [result]}),))
    request = Request(system, TOOLS, (step,), Observation(seen + "x"))
    assert render_row(request, Turn("Go.", (call,)), fmt).text == template_text(
        tokenizer, request, Turn("Go.", (call,)), fmt
    )


@pytest.mark.parametrize("name", OURS)
def test_every_prompt_is_the_beginning_of_its_row_and_every_mask_is_right(name):
    processor = replace(tiny_processor(1), family=FAMILY)
    collator = Collator(processor, OURS[name], PromptConfig(format=name), VisionConfig(tiles=10), TrainConfig())
    audit = MaskAudit(processor.tokenizer, False, FAMILY, OURS[name].opening)
    for turn in TURNS:
        request = request_of(2, 1)
        prompt, sample = collator.encode(request, None, "r").input_ids, collator.sample(Row("r", request, turn))
        encoded = sample.encoded
        assert np.array_equal(prompt, encoded.input_ids[: len(prompt)])
        audit.check(encoded.input_ids, sample.labels, sample.parts, encoded.spans, encoded.num_turns)
    text = render_prompt(request_of(2, 0), OURS[name]).text
    messages = to_chat(text, [], FAMILY, OURS[name].opening)
    assert [message["role"] for message in messages][:3] == ["system", "user", "assistant"]


@pytest.mark.parametrize("name", [name for name in OURS if name != "plain"])
def test_a_turn_that_only_tools_have_answered_keeps_its_block_which_is_not_learned(name):
    """Two such turns behind one that a user has answered."""
    fmt, learns_history = OURS[name], name != "think"
    went = Step(Observation(""), Turn("Go.", (move(),)), (ToolResult("move", {"status": "ok"}),))
    history = (*request_of(1, 1).history, replace(went, observation=Observation("On.")), went)
    request = replace(request_of(0, 0), history=history, observation=Observation(""))
    processor = replace(tiny_processor(1), family=FAMILY)
    prompt = PromptConfig(format=name, history_steps=9, supervise_history=learns_history)
    collator = Collator(processor, fmt, prompt, VisionConfig(tiles=10), TrainConfig())
    sample = collator.sample(Row("r", request, Turn("Done.", (move(),))))
    text = "".join(span.text for span in sample.encoded.spans)
    assert text.count("user\n<|im_end|>") == 0 and text.count("<|im_start|>user\n") == 2 + 3
    assert text.count(FAMILY.template.assistant + fmt.opening) == 3 and text.count("<think>") == 3
    audit = MaskAudit(processor.tokenizer, learns_history, FAMILY, fmt.opening)
    encoded = sample.encoded
    audit.check(encoded.input_ids, sample.labels, sample.parts, encoded.spans, encoded.num_turns)


# calls as elements

ANYTHING = Tool("anything", "Do.", {"type": "object", "properties": {}})
SCHEMAS = {
    "text": {"type": "string"},
    "way": {"enum": ["UP", "2", "True"]},
    "count": {"type": "integer"},
    "share": {"type": "number"},
    "flag": {"type": "boolean"},
    "none": {"type": "null"},
    "list": {"type": "array"},
    "map": {"type": "object"},
    "maybe": {"type": ["integer", "null"]},
    "either": {"anyOf": [{"type": "boolean"}, {"type": "array"}]},
}
TYPED = Tool("typed", "Do.", {"type": "object", "properties": SCHEMAS})
TEXT = st.lists(st.sampled_from(["\n", '"', "2", "True", "</", "<tool", "[1]", "호", "🐯"]) | st.text(max_size=4)).map(
    "".join
)
OF_SCHEMA = {
    "text": TEXT,
    "way": st.sampled_from(["UP", "2", "True"]),
    "count": st.integers(),
    "share": st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    "flag": st.booleans(),
    "none": st.none(),
    "list": st.lists(VALUES, max_size=3),
    "map": st.dictionaries(st.text(max_size=4), VALUES, max_size=3),
    "maybe": st.integers() | st.none(),
    "either": st.booleans() | st.lists(VALUES, max_size=2),
}


def exact(value: object) -> str:
    """Distinguishes 1, 1.0 and True."""
    return json.dumps(value)


@pytest.mark.parametrize("name", [name for name in OURS if name != "plain"])
@given(arguments=st.fixed_dictionaries({}, optional=OF_SCHEMA), thought=TEXT)
@settings(max_examples=150, deadline=None)
def test_a_call_of_a_typed_tool_is_read_as_it_was_written(name, arguments, thought):
    fmt = OURS[name]
    try:
        turn = Turn(thought, (ToolCall("typed", arguments), ToolCall("typed", {})))
        text = "".join(span.text for span in fmt.render(turn))
    except ValueError:
        return
    answer = fmt.parse(text, (TYPED,))
    assert answer == Answer(fmt.project(turn), text)
    assert exact([c.arguments for c in answer.turn.tool_calls]) == exact([c.arguments for c in turn.tool_calls])


@given(value=VALUES)
@settings(max_examples=150, deadline=None)
def test_where_the_schema_is_silent_only_texts_that_look_like_other_values_are_read_as_those(value):
    try:
        text = written(value)
    except ValueError:
        return
    found = typed(text, None, Repairs())
    assert exact(found) == exact(value) or isinstance(value, str) and not isinstance(found, str)
    assert written(found) == text  # so that the next prompt shows what was written


@pytest.mark.parametrize("text", ["<parameter=a>", "x</parameter>\n", "</function>", "a <function=move> b"])
def test_what_the_syntax_cannot_hold_is_refused(text):
    for value in (text, [text], {"in": {text: 1}}):
        with pytest.raises(ValueError, match="would end it or begin another.*has no escape; reword"):
            NATIVE.render(Turn(tool_calls=(ToolCall("say", {"text": value}),)))


def block(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def parameter(key: str, value: str) -> str:
    return f"<parameter={key}>\n{value}\n</parameter>\n"


ACTIONS = parameter("actions", '[{"direction": "RIGHT", "steps": 2}]')
GO = f"<function=move>\n{ACTIONS}</function>"
ONE, TWO = Turn("Go.", (move(),)), Turn(tool_calls=(move(), move()))


@pytest.mark.parametrize(
    ("text", "turn", "repairs"),
    [
        (f"Go.\n\n{block(GO)}<|im_end|>", ONE, ()),
        (f"{block(GO)}\n{block(GO)}", TWO, ()),
        (f"Go.\n{GO}", ONE, ("missing_open_tag",)),
        (f"Go.\n\n<tool_call>\n{GO}", ONE, ("missing_close_tag",)),
        (f"Go.\n\n{block(GO.removesuffix('</function>'))}", ONE, ("missing_function_end",)),
        (f"Go.\n\n{block(GO.replace('</parameter>', ''))}", ONE, ("missing_parameter_end",)),
        (f"{block(GO + chr(10) + GO)}", TWO, ("missing_close_tag",)),
        (f"Go.\n\n{block(GO.replace(chr(34), chr(39)))}", ONE, ("single_quotes",)),
        (f"Go.\n\n{block(GO.replace('2}]', '2,}]'))}", ONE, ("trailing_comma",)),
        (
            'Go.\n\n<tool_call>\n{"name": "move", "arguments": {"actions": [{"direction": "RIGHT", "steps": 2}]}}\n</tool_call>',
            ONE,
            ("json_call_in_elements",),
        ),
        (
            "Go.\n\n"
            + block('<function=move><parameter=actions>[{"direction": "RIGHT", "steps": 2}]</parameter></function>'),
            ONE,
            ("inline_value",),
        ),
        (f"Go.\n\n{block(GO.replace('2}', '2.0}'))}", ONE, ("string_number",)),
        (f"Go.\n\n{block('So: ' + GO)}", ONE, ("text_before_call",)),
        (f"Go.\n\n{block(GO + ' Done')}", ONE, ("text_after_call",)),
    ],
)
def test_repairs_of_elements_are_named(text, turn, repairs):
    assert NATIVE.parse(text, TOOLS) == Answer(turn, text, repairs=repairs)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<tool_call>\n<function=mo", "unclosed_call"),
        ("<tool_call>\n<function=move>\n<parameter=actions>\n[1, 2", "unclosed_call"),
        ("<tool_call>\n<function=move>\n<parameter=act", "unclosed_call"),
        (block("move(1)"), "json_error"),
        (block(f"<function=move>\n{ACTIONS}{ACTIONS}</function>"), "json_error"),
        (block(f"<function=move>\n{parameter('actions', '[1 2')}</function>"), "json_error"),
        (block("<function=a b>\n</function>"), "bad_name"),
        # read in another syntax, which has an escape for what no later prompt could show in this one
        (block('{"name": "move", "arguments": {"note": "</parameter>"}}'), "bad_arguments"),
        ('Action: move(note=["<function=a>"])', "bad_arguments"),
        (f"Action: {'_' * 201}()", "bad_arguments"),
    ],
)
def test_errors_of_elements_are_named(text, error):
    assert NATIVE.parse(text, TOOLS) == Answer(Turn(), text, error=error)


PIECES = ["<tool_call>", "<function=move>", "<parameter=actions>\n", "</parameter>", "</function>", "<", "[", "x\n"]


@pytest.mark.parametrize(
    "piece", [*PIECES, "<parameter=a>\n1\n</parameter>\n", "<function=a>\n</function>\n", "<function="]
)
def test_an_endless_answer_is_read_in_no_time(piece):
    for head in ("", "<tool_call>\n<function=move>\n"):
        text = head + piece * (200_000 // len(piece))
        start = time.process_time()
        for fmt in OURS.values():
            fmt.parse(text, TOOLS)
        assert time.process_time() - start < 4


@given(text=st.lists(st.sampled_from([*PIECES, GO, "</tool_call>", "}", '"', "2"]) | st.text(max_size=3)).map("".join))
@settings(max_examples=150, deadline=None)
def test_parse_never_raises_and_what_was_read_can_be_written(text):
    for fmt in OURS.values():
        answer = fmt.parse(text, TOOLS)
        assert bool(answer.error) != (answer.turn != Turn())
        "".join(span.text for span in fmt.render(answer.turn))
        for call in answer.turn.tool_calls:
            for value in call.arguments.values():
                assert not isinstance(value, str) or not MARK.search(value)


def test_what_a_server_has_parsed_is_put_together_again():
    calls = [{"function": {"name": "move", "arguments": json.dumps(move().arguments)}}]
    text, is_parsed = written_text({"content": "Go.", "tool_calls": calls}, FAMILY)
    assert (text, is_parsed) == (f"Go.\n\n{block(GO)}", True)
    broken = [{"function": {"name": "move", "arguments": '{"a": '}}]
    assert NATIVE.parse(written_text({"content": "", "tool_calls": broken}, FAMILY)[0], TOOLS).error


def test_argument_values_are_found_among_the_elements():
    turn = Turn("Go.", (move(), ToolCall("say", {"text": "RIGHT\n2", "n": 2, "flag": True}), ToolCall("end", {})))
    for name in ("native", "hybrid", "plain"):
        span = next(span for span in OURS[name].render(turn) if span.part == "call")
        pieces = split_values(span, turn, FAMILY.calls)
        assert "".join(piece.text for piece in pieces) == span.text
        values = [piece.text for piece in pieces if piece.part == "text"]
        assert values[:2] == ['"RIGHT', "2"] and len(values) == 5
    assert values[2:] == ['"RIGHT\\n2', "2", "true"]


# grammar


@pytest.mark.parametrize("name", ["native", "think"])
def test_a_grammar_takes_its_answers_and_no_others(name):
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer

    tokenizer, fmt = tiny_processor(1).tokenizer, OURS[name]
    tokens = from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=tokenizer.eos_token_id)
    tool = Tool("typed", "Do.", {**TYPED.parameters, "required": ["text", "count"]})
    grammar = LLMatcher.grammar_from_lark(fmt.grammar((tool,)))

    def takes(arguments: dict, change: tuple[str, str] = ("", "")) -> bool:
        text = "".join(span.text for span in fmt.render(Turn("Down.", (ToolCall("typed", arguments),))))
        ids = tokenizer.encode(text.replace(*change), add_special_tokens=False)
        matcher = LLMatcher(tokens, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    least = {"text": 'one\n"two" 🐯\n', "count": 2}
    assert takes(least) and takes(dict(reversed(least.items())))
    assert takes(least | {"flag": True, "none": None, "maybe": None, "list": [1, {"a": "b"}], "way": "2", "share": 1.5})
    assert takes(least | {"maybe": 7}) and takes(least | {"either": False}) and takes(least | {"map": {}})
    assert not takes({"count": 2})
    assert not takes(least, ("\n2\n", "\ntwo\n"))
    assert not takes(least | {"flag": True}, ("True", "true"))
    assert not takes(least | {"way": "UP"}, ("\nUP\n", "\nDOWN\n"))
    assert not takes(least, ("two", "</parameter>"))


# the model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("qwen3_5") / "base", family=FAMILY)


def test_packs_are_refused(base, tmp_path):
    config = tiny_config(tmp_path, base, tmp_path / "x.jsonl", model={"attention": "sdpa"}, train={"pack_tokens": 400})
    processor = build_processor(config.model, config.vision)
    with pytest.raises(ValueError, match="keeps a state that would run on from row to row.*pack_tokens=0"):
        build_collator(processor, config)


def test_adapters_are_on_both_kinds_of_attention(base, tmp_path):
    config = tiny_config(tmp_path, base, tmp_path / "x.jsonl")
    names = [name for name, p in build_model(config.model, "cpu").named_parameters() if p.requires_grad]
    assert {name.split(".layers.")[1].split(".lora")[0] for name in names} == {
        *(f"0.linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")),
        *(f"1.self_attn.{name}_proj" for name in "qkvo"),
        *(f"{i}.mlp.{name}_proj" for i in (0, 1) for name in ("gate", "up", "down")),
    }
    few = replace(config.model, lora_targets=("in_proj_qkv", "q_proj"))
    names = [name for name, p in build_model(few, "cpu").named_parameters() if p.requires_grad]
    assert len(names) == 4


def test_positions_are_the_models_own(base, tmp_path):
    config = tiny_config(tmp_path, base, tmp_path / "x.jsonl", prompt={"history_steps": 2})
    processor = build_processor(config.model, config.vision)
    batch = build_collator(processor, config).encode_prompt([request_of(2, 2, size=64)])
    model = build_model(replace(config.model, method="full"), "cpu")
    expected = model._prepare_position_ids_for_generation(batch["input_ids"], dict(batch, position_ids=None))
    assert torch.equal(batch["position_ids"], expected)


def test_the_formats_of_other_families_are_as_they_were():
    assert FORMATS["native"].opening == "" and OURS["native"].opening == "<think>\n\n</think>\n\n"
