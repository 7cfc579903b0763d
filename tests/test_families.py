"""Families: nobody else spells a model, and another family's template and calls fit through the same seam."""

import ast
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import picture, tiny_processor

import qwenvl_agent
from qwenvl_agent.config import PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.masks import MaskAudit
from qwenvl_agent.families import DEFAULT, FAMILIES, control_words, find_family
from qwenvl_agent.formats import FORMATS, formats_of
from qwenvl_agent.inference.endpoint import to_chat
from qwenvl_agent.near_json import ParseError
from qwenvl_agent.prompt import render_prompt, render_row
from qwenvl_agent.schema import Observation, Request, Row, Step, Tool, ToolCall, ToolResult, Turn, clean

PACKAGE = Path(qwenvl_agent.__file__).parent
ROOT = PACKAGE.parent
# What a model is recognised by: its tokens, classes, module paths.
SPELLINGS = re.compile(
    "|".join(
        [
            *(re.escape(token) for family in FAMILIES.values() for token in family.added_tokens),
            *(
                r"Qwen\d\w*VL\w*",
                r"qwen\d\w*_vl",
                r"[Qq]wen3_5\w*",
                "deepstack",
                r"\bvisual\b",
                r"\blanguage_model\b",
                r"\blm_head\b",
            ),
            *(r"\bpatch_embed\b", r"spatial_merge_size", "deepstack_visual_indexes", r"\bim_(start|end)\b"),
        ]
    )
)
ALLOWED = {
    "training/pretraining.py": "makes the shipped bases: it trains the parts of one family's model, not a model",
}


def code_words(path: Path) -> list[str]:
    """Names and texts in a file's code; docstrings and the texts under fields are prose."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    words = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            words.append(node.value)
        elif isinstance(node, ast.Attribute):
            words.append(node.attr)
        elif isinstance(node, (ast.Name, ast.alias)):
            words.append(node.id if isinstance(node, ast.Name) else node.name)
    return words


def spelled(path: Path) -> list[str]:
    return sorted({match.group() for word in code_words(path) for match in SPELLINGS.finditer(word)})


def test_only_families_spell_a_model():
    files = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] != "families"]
    found = {p.relative_to(PACKAGE).as_posix(): spelled(p) for p in files}
    found |= {name: spelled(ROOT / name) for name in ("train.py", "eval.py")}
    assert {name: words for name, words in found.items() if words and name not in ALLOWED} == {}
    assert all(found[name] for name in ALLOWED), "a file in the list spells nothing any more: take it out"
    assert {"<|im_start|>", "lm_head", "deepstack", "qwen3_vl"} <= set(spelled(PACKAGE / "families/qwen3_vl.py"))


def test_nobody_else_asks_which_family_it_is():
    """What differs is in the `Family`, not in a comparison of its name."""
    asked = []
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] == "families":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            compared += [node.subject] if isinstance(node, ast.Match) else []
            names = {part.attr for part in compared if isinstance(part, ast.Attribute)}
            names |= {part.id for part in compared if isinstance(part, ast.Name)}
            if names & {"model_type", "family"}:
                asked.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert asked == []


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
class TestEveryFamily:
    def test_text_cannot_spell_its_control_tokens(self, family):
        template = family.template
        tokens = [*family.added_tokens, template.turn_begin, template.turn_end, *template.vision_tokens]
        for token in [*tokens, template.result_begin, template.result_end, family.calls.open, family.calls.close]:
            assert clean(f"a{token}b") == f"a<\\{token[1:]}b"

    def test_its_marks_are_tokens(self, family):
        template = family.template
        marks = (template.turn_begin, template.turn_end, template.result_begin, template.result_end, family.padding)
        assert {*marks, *template.vision_tokens} <= set(family.added_tokens)

    def test_transformers_has_its_classes(self, family):
        for kind in ("model", "config", "processor", "tokenizer", "image_processor", "video_processor"):
            assert family.load_class(kind).__name__ == getattr(family.classes, kind)
        assert family.load_class("config").model_type == family.model_type

    def test_a_small_config_has_its_architecture(self, family):
        from qwenvl_agent.model.tiny import PRESETS

        config = family.tiny_config(tiny_processor(1).tokenizer, **PRESETS["tiny_screens"])
        arch = family.read_architecture(config.to_dict())
        assert (arch.model_type, arch.hidden, arch.layers) == (family.model_type, 128, 4)
        assert (arch.patch, arch.merge, arch.num_positions) == (16, 2, 256)


def test_a_model_of_no_family_here_is_refused_by_name():
    assert find_family("qwen3_vl", "model.path 'x'") is DEFAULT
    with pytest.raises(
        ValueError, match=r"model.path 'x' is of the family 'llava': .* use a Qwen3-VL or Qwen3-VL-30B-A3B or Qwen3.5"
    ):
        find_family("llava", "model.path 'x'")


# A family with another template and another syntax of calls: tools before the system's text, white space stripped, an
# empty thinking block before the turn to be written, calls as elements whose values have the types of the schema.


@dataclass(frozen=True)
class ElementCalls:
    open: str = "<tool_call>"
    close: str = "</tool_call>"
    gap: str = "\n\n"
    between: str = "\n"
    bare: re.Pattern = re.compile("<function=")

    def write(self, name, arguments):
        pairs = "".join(f"<parameter={key}>\n{self._text(value)}\n</parameter>\n" for key, value in arguments.items())
        return f"{self.open}\n<function={name}>\n{pairs}</function>\n{self.close}"

    def _text(self, value):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def pieces(self, arguments):
        return "", ()

    def write_served(self, name, arguments):
        return self.write(name, json.loads(arguments))

    def read(self, body, is_closed, parameters_of, repairs):
        call = re.match(r"\s*<function=([^>\n]*)>\n(.*)</function>", body, re.DOTALL)
        if not call:
            raise ParseError("json_error" if is_closed else "unclosed_call")
        properties = parameters_of(call[1]).get("properties", {})
        pairs = re.findall(r"<parameter=([^>\n]*)>\n(.*?)\n</parameter>\n", call[2], re.DOTALL)
        is_text = {key: properties.get(key, {}).get("type") == "string" for key, _ in pairs}
        yield call[1], {key: value if is_text[key] else json.loads(value) for key, value in pairs}

    def expression(self, name, parameters, rules):
        pairs = [
            " ".join(
                [
                    rules.literal(f"<parameter={key}>\n"),
                    r"/[^\n<]*/" if schema["type"] == "string" else rules.value(schema, key),
                    rules.literal("\n</parameter>\n"),
                ]
            )
            for key, schema in parameters["properties"].items()
        ]
        ends = rules.literal(f"</function>\n{self.close}")
        return " ".join([rules.literal(f"{self.open}\n<function={name}>\n"), *pairs, ends])


OTHER = replace(
    DEFAULT,
    template=replace(
        DEFAULT.template,
        opening="<think>\n\n</think>\n\n",
        tools_head="# Tools\n\n<tools>",
        tools_tail="\n</tools>\n\nCall them.",
        tools_before_text=True,
        strips_text=True,
    ),
    calls=ElementCalls(),
)
TOOL = Tool(
    "move",
    "Go.",
    {"type": "object", "properties": {"way": {"type": "string"}, "steps": {"type": "integer"}}, "required": ["way"]},
)
STEP = Step(
    Observation(" Where? ", (picture(),)),
    Turn("It is up.", (ToolCall("move", {"way": "up\nand away", "steps": 2}), ToolCall("move", {"way": "7"}))),
    (ToolResult("move", {"ok": True}), ToolResult("move", {"ok": False})),
)
REQUEST = Request(" You walk. ", (TOOL,), (STEP,), Observation("And now?"))
TURN = Turn("Down.", (ToolCall("move", {"way": "down", "steps": 1}),))
TOOL_LINE = json.dumps(TOOL.to_json())


def test_another_familys_template_and_calls_make_its_prompt():
    fmt = replace(formats_of(OTHER)["native"])
    instructions = fmt.instructions((TOOL,))
    history = (
        f"<|im_start|>system\n# Tools\n\n<tools>\n{TOOL_LINE}\n</tools>\n\nCall them.\n\nYou walk. \n\n{instructions}"
        "<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|> Where?<|im_end|>\n"
        "<|im_start|>assistant\nIt is up.\n\n"
        "<tool_call>\n<function=move>\n<parameter=way>\nup\nand away\n</parameter>\n<parameter=steps>\n2\n</parameter>\n"
        "</function>\n</tool_call>\n"
        "<tool_call>\n<function=move>\n<parameter=way>\n7\n</parameter>\n</function>\n</tool_call><|im_end|>\n"
        '<|im_start|>user\n<tool_response>\n{"ok": true}\n</tool_response>\n'
        '<tool_response>\n{"ok": false}\n</tool_response><|im_end|>\n'
    )
    now = "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert render_prompt(REQUEST, fmt).text == history + now
    answer = (
        "Down.\n\n<tool_call>\n<function=move>\n<parameter=way>\ndown\n</parameter>\n<parameter=steps>\n1\n</parameter>\n"
        "</function>\n</tool_call><|im_end|>\n"
    )
    assert render_row(REQUEST, TURN, fmt).text == history + now + answer
    messages = to_chat((history + now).replace("<|image_pad|>", "<|image_pad|>" * 3), ["url"], OTHER)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "user"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("turn", [STEP.turn, TURN], ids=["two calls", "one call"])
def test_every_format_reads_back_what_it_writes_for_another_family(name, turn):
    fmt = formats_of(OTHER)[name]
    text = "".join(span.text for span in fmt.render(turn))
    answer = fmt.parse(f"{text}<|im_end|>", (TOOL,))
    assert (answer.turn, answer.repairs, answer.error) == (fmt.project(turn), (), "")


@pytest.mark.parametrize("supervise_history", [False, True])
def test_another_familys_masks_leave_its_opening_out(supervise_history):
    processor = replace(tiny_processor(1), family=OTHER)
    prompt_cfg = PromptConfig(supervise_history=supervise_history)
    collator = Collator(
        processor, formats_of(OTHER)["native"], prompt_cfg, VisionConfig(max_tokens_per_image=64), TrainConfig()
    )
    sample = collator.sample(Row("r", REQUEST, TURN))
    encoded = sample.encoded
    audit = MaskAudit(processor.tokenizer, supervise_history, OTHER)
    counts = audit.check(encoded.input_ids, sample.labels, sample.parts, encoded.spans, encoded.num_turns)
    assert counts["call"] and counts["end"] == 1 + supervise_history
    written = processor.tokenizer.decode(encoded.input_ids[sample.labels >= 0])
    assert "<think>" not in written and written.endswith("</tool_call><|im_end|>")
    prompt = collator.encode(REQUEST, None, "r").input_ids
    assert np.array_equal(prompt, encoded.input_ids[: len(prompt)])


def test_another_familys_grammar_takes_its_answers_and_no_others():
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer

    tokenizer = tiny_processor(1).tokenizer
    fmt = formats_of(OTHER)["native"]
    tokens = from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=tokenizer.eos_token_id)
    grammar = LLMatcher.grammar_from_lark(fmt.grammar((TOOL,)))

    def takes(turn: Turn, text: str = "") -> bool:
        ids = tokenizer.encode(text or "".join(span.text for span in fmt.render(turn)), add_special_tokens=False)
        matcher = LLMatcher(tokens, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    assert takes(TURN)
    assert not takes(Turn("Down.", (ToolCall("fly", {"way": "down", "steps": 1}),)))
    assert not takes(Turn("Down.", (ToolCall("move", {"way": "down", "steps": "far"}),)))


def test_control_words_are_those_of_all_families():
    assert control_words() == ("tool_call", "tool_response", "tools", "think")
