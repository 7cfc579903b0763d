"""Constrained decoding: what ends under a grammar is read strictly, and what was right stays as it was."""

import random
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import tiny_tokenizer
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from PIL import Image
from test_formats import turns
from tiny_run import save_tiny_checkpoint
from transformers import AutoTokenizer

import qwenvl_agent
from qwenvl_agent.computer.tool import COMPUTER_USE
from qwenvl_agent.config import EvalConfig, ModelConfig, PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.families import DEFAULT
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.inference.constraint import Grammars
from qwenvl_agent.inference.endpoint import EndpointPolicy
from qwenvl_agent.inference.policy import ModelPolicy
from qwenvl_agent.model.build import build_model, build_processor
from qwenvl_agent.schema import Observation, Picture, Request, Tool, ToolCall, Turn, tool_named
from qwenvl_agent.worlds.safari.tools import TOOLS as SAFARI_TOOLS

ASSETS = Path(qwenvl_agent.__file__).parent / "assets"
END = DEFAULT.template.turn_end
ALL_KINDS = Tool(
    "all",
    "Has every keyword that a grammar holds.",
    {
        "type": "object",
        "properties": {
            "free": {},
            "level": {"type": "number", "minimum": -1, "maximum": 2.5},
            "count": {"type": "integer", "exclusiveMinimum": 3},
            "word": {"type": ["string", "null"], "minLength": 2, "maxLength": 5},
            "kind": {"enum": ["a", 1, None, "호<|"]},
            "sure": {"type": "boolean", "default": False},
            "map": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}},
            "items": {
                "type": "array",
                "minItems": 2,
                "maxItems": 3,
                "items": {"anyOf": [{"const": 7}, {"type": "null"}]},
            },
            "inner": {"type": "object", "properties": {"x": {"type": "number"}, "y": {}}, "required": ["y"]},
        },
        "required": ["items", "kind"],
    },
)
BEGUN = {
    "safari": ToolCall("move", {"actions": [{"direction": "UP", "steps": 1}]}),
    "computer": ToolCall("computer_use", {"action": "left_click", "coordinate": [1, 2]}),
    "all": ToolCall("all", {"kind": 1, "items": [7, None], "word": None, "map": {"a": 1}, "inner": {"y": [{}, 1.5]}}),
}
TOOL_SETS = {"safari": SAFARI_TOOLS["catch"], "computer": (COMPUTER_USE,), "all": (ALL_KINDS,)}


@cache
def tokenizer():
    return tiny_tokenizer()


@cache
def grammars(name: str) -> Grammars:
    tokens = tokenizer()
    return Grammars(FORMATS[name], tokens, tokens.convert_tokens_to_ids(END), len(tokens) + 7)


def written(name: str, turn: Turn) -> str:
    return "".join(span.text for span in FORMATS[name].render(turn))


def tokens_of(text: str) -> list[int]:
    return tokenizer()(text)["input_ids"]


def is_whole(name: str, tools, text: str) -> bool:
    """Whether a text of these tokens is an answer of the grammar, from its first to its end token."""
    matcher = grammars(name).compile(tools).deep_copy()
    ids = tokens_of(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def tools_of(turns_: list[Turn]) -> tuple[Tool, ...]:
    """Tools that have exactly the arguments of these turns' calls, of any type."""
    names: dict[str, dict] = {}
    for turn in turns_:
        for call in turn.tool_calls:
            names.setdefault(call.name, {}).update(dict.fromkeys(call.arguments, {}))
    return tuple(Tool(name, "", {"type": "object", "properties": keys}) for name, keys in names.items())


# what the renderer writes


@pytest.mark.parametrize("name", FORMATS)
@given(some=st.lists(turns(), min_size=1, max_size=8))
@example(
    some=[
        Turn("t", (ToolCall("n", {"a": "\n\u0303 \U0001f42f\u0303"}), ToolCall("n", {"a": [1e22, -0.0, 1e-7, 5e-324]})))
    ]
)
@settings(max_examples=20, deadline=None)
def test_a_grammar_holds_every_turn_that_its_format_writes(name, some):
    tools = tools_of(some)
    assume(not any("e+308" in written("native", turn) for turn in some))  # the end of a float's range
    for turn in some:
        assert is_whole(name, tools, written(name, turn)), written(name, turn)


@pytest.mark.parametrize("order", [("direction", "steps"), ("steps", "direction")])
@pytest.mark.parametrize("name", FORMATS)
def test_no_token_of_a_written_turn_is_held_back(name, order):
    """With the tokenizer that is shipped: tokens of its go over many pieces of a grammar, `", "arguments": {"actions":`."""
    shipped = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    step = {"direction": "DOWN", "steps": 1}
    calls = [ToolCall("move", {"actions": [{key: step[key] for key in order}] * n}) for n in (1, 2)]
    turn = Turn(
        "Me f5. Plan DOWN 1.", (*calls, ToolCall("declare_found", {"target": "tiger"}), ToolCall("declare_done", {}))
    )
    constraint = Grammars(FORMATS[name], shipped, shipped.convert_tokens_to_ids(END), len(shipped)).start(
        [SAFARI_TOOLS["catch"]]
    )
    ids = shipped(written(name, turn), add_special_tokens=False)["input_ids"]
    for token in [*ids, shipped.convert_tokens_to_ids(END)]:
        allowed = constraint.masked([0], torch.zeros(1, len(shipped)))[0]
        assert allowed[token] == 0, f"{shipped.decode([token])!r} is held back"
        constraint.advance([0], [token])


@pytest.mark.parametrize("name", FORMATS)
def test_arguments_come_in_any_order_once_and_named(name):
    def accepts(**arguments):
        return is_whole(name, TOOL_SETS["computer"], written(name, Turn("Go.", (ToolCall("computer_use", arguments),))))

    assert accepts(action="left_click", coordinate=[1, 2]) and accepts(coordinate=[1000, 2], action="left_click")
    assert accepts(time=0.5, action="wait")
    assert not accepts(coordinate=[1, 2]) and not accepts(action="left_click", place=[1, 2])
    assert not accepts(action="left_click", coordinate=[1, 1001]) and not accepts(action="jump")
    twice = written(name, Turn("", (ToolCall("computer_use", {"action": "wait", "time": 1}),)))
    assert not is_whole(name, TOOL_SETS["computer"], twice.replace("1", '1, "time": 1').replace("time=1, ", "time=1, "))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("text", ["I see no tiger.", "", "Thought: Nothing.\n", "Action: jump()"])
def test_a_grammar_has_no_answer_without_a_call_of_a_tool(name, text):
    assert not is_whole(name, TOOL_SETS["safari"], text)


@pytest.mark.parametrize(
    "text", ["<think>", "<|im_end|>", "</tool_call>", "a\nAction: b", "\\u003cthink>", "<|\\u212A|>"]
)
def test_no_text_of_an_answer_holds_what_its_parser_refuses(text):
    for name in ("plain", "native"):
        whole = written(name, Turn("THOUGHT", (ToolCall("update_notepad", {"content": "CONTENT"}),)))
        assert is_whole(name, TOOL_SETS["safari"], whole)
        matcher = grammars(name).compile(TOOL_SETS["safari"])
        for mark in ("THOUGHT", "CONTENT"):
            if mark == "THOUGHT" and "\\u" in text:
                continue  # no escapes there
            before, _, after = whole.partition(mark)
            spelled = [i for letter in text for i in tokens_of(letter)]  # no added token
            ids = [*tokens_of(before), *spelled, *tokens_of(after)]
            one = matcher.deep_copy()
            num_fit = one.try_consume_tokens(ids)
            assert len(tokens_of(before)) <= num_fit < len(ids), (name, mark)


# what is written under it

LOOSE = {"hybrid": {"other_action_line"}}
"""No context-free grammar makes one list of names repeat in another: an Action line may name other calls than follow."""


@pytest.mark.parametrize("tools", TOOL_SETS)
@pytest.mark.parametrize("name", FORMATS)
def test_what_ends_is_read_strictly_and_fits_the_schemas(name, tools):
    """Tokens at random, those that close something more often, from random beginnings of right answers."""
    rng = random.Random(f"{name} {tools}")
    known = TOOL_SETS[tools]
    ended = 0
    for _ in range(60):
        text = random_answer(rng, name, known, Turn("I go.\nThen?", (BEGUN[tools],)))
        if text is None:
            continue
        ended += 1
        answer = FORMATS[name].parse(text, known)
        assert not answer.error and not set(answer.repairs) - LOOSE.get(name, set()) and answer.turn.tool_calls, text
        for call in answer.turn.tool_calls:
            assert not list(
                Draft202012Validator(tool_named(known, call.name).parameters).iter_errors(call.arguments)
            ), text
    assert ended >= 4


def random_answer(rng: random.Random, name: str, tools, turn: Turn, num_tokens: int = 150) -> str | None:
    """Text of a random answer that begins like the turn's for a while, None if it did not end."""
    end_id = tokenizer().convert_tokens_to_ids(END)
    closing = {
        end_id,
        *(i for text in ('"', "}", "]", ")", "\n", '"}', ")]", ", ", "Action", ":", " ") for i in tokens_of(text)),
    }
    begun = tokens_of(written(name, turn))
    ids = begun[: rng.choice([0, rng.randrange(len(begun))])]
    constraint = grammars(name).start([tools])
    constraint.advance([0] * len(ids), ids)
    size = len(tokenizer()) + 7
    for _ in range(num_tokens):
        allowed = constraint.masked([0], torch.zeros(1, size))[0].isfinite().nonzero()[:, 0].tolist()
        near = [i for i in allowed if i in closing]
        token = rng.choice(near if near and rng.random() < 0.5 else allowed)
        constraint.advance([0], [token])
        if token == end_id:
            return tokenizer().decode(ids, clean_up_tokenization_spaces=False)
        ids.append(token)
    return None


# a model


TOOLS = (
    Tool("move", "Walk.", {"type": "object", "properties": {"to": {"enum": ["UP", "DOWN"]}}, "required": ["to"]}),
    Tool("stop", "End.", {"type": "object", "properties": {}}),
)


def request(colour: str, tools=TOOLS) -> Request:
    picture = Picture.from_image(Image.new("RGB", (64, 64), colour))
    return Request("You walk.", tools, (), Observation("Where?", (picture,)))


COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = save_tiny_checkpoint(tmp_path_factory.mktemp("base"))
    model_cfg = ModelConfig(path=str(path), method="full", dtype="float32", autocast=False)
    vision_cfg = VisionConfig(max_tokens_per_image=16, min_tokens_per_image=4)
    return model_cfg, vision_cfg, build_processor(model_cfg, vision_cfg)


@pytest.fixture(scope="module")
def untrained(base):
    return build_model(base[0], "cpu")


def build_policy(base, model, name: str, **settings) -> ModelPolicy:
    _, vision_cfg, processor = base
    collator = Collator(processor, FORMATS[name], PromptConfig(), vision_cfg, TrainConfig())
    return ModelPolicy(model, processor, collator, FORMATS[name], EvalConfig(**settings))


@pytest.mark.parametrize("name", FORMATS)
def test_an_untrained_model_writes_nothing_but_strict_answers(base, untrained, name):
    settings = {"temperature": 1.0, "max_new_tokens": 60, "batch_size": 24}
    requests = [request(COLOURS[i % 4]) for i in range(24)]
    answers = build_policy(base, untrained, name, constrained=True, **settings).act(requests)
    ended = [answer for answer in answers if answer.error != "endless"]
    # A thought of random tokens hardly ever ends, and native answers, and thoughts in a block, nearly all begin with one.
    assert len(ended) >= (0 if name in ("native", "think") else 3)
    assert all(not a.error and not set(a.repairs) - LOOSE.get(name, set()) and a.turn.tool_calls for a in ended)
    free = build_policy(base, untrained, name, **settings).act(requests)
    assert not any(answer.turn.tool_calls for answer in free)
    cut = build_policy(base, untrained, name, constrained=True, **settings | {"max_new_tokens": 2}).act(requests)
    assert {answer.error for answer in cut} == {"endless"}


def test_a_request_without_tools_is_free(base, untrained):
    settings = {"max_new_tokens": 5}
    requests = [request("red", tools=()), request("red")]
    free = build_policy(base, untrained, "native", **settings).act(requests)
    held = build_policy(base, untrained, "native", constrained=True, **settings).act(requests)
    assert held[0] == free[0] and held[1] != free[1]


# refusals


def test_a_schema_that_no_grammar_holds_is_refused():
    def refused(**schema):
        tool = Tool("t", "", {"type": "object", "properties": {"a": schema}})
        with pytest.raises(ValueError) as caught:
            grammars("native").compile([tool])
        return str(caught.value)

    assert "tool t, a has the keyword 'pattern'" in refused(type="string", pattern="x")
    assert "set eval.constrained=false" in refused(oneOf=[{}])
    assert "has the type 'text'" in refused(type="text")
    with pytest.raises(ValueError, match="tool t requires 'b' and does not describe it"):
        FORMATS["plain"].grammar([Tool("t", "", {"type": "object", "properties": {}, "required": ["b"]})])
    with pytest.raises(ValueError, match="'a b', which no call can carry"):
        FORMATS["plain"].grammar([Tool("t", "", {"type": "object", "properties": {"a b": {}}})])


def test_a_served_model_cannot_be_constrained():
    with pytest.raises(ValueError, match="eval.constrained is true with a served model"):
        EndpointPolicy("http://127.0.0.1:1/v1", "m", None, FORMATS["native"], EvalConfig(constrained=True))
