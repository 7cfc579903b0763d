"""Prompts and rows against the published chat templates, byte for byte, on odd conversations drawn from a seed.

The templates are not part of this repository: environment variables name where they are. Of each the files that hold it:

| checkpoints | variable | names |
|---|---|---|
| Qwen3-VL Instruct, 2B to 32B and 30B-A3B | QWENVL_PROCESSOR | the folder of a processor |
| Qwen3-VL Thinking, the same sizes | QWENVL_THINKING_TEMPLATE | its chat_template.jinja |
| Qwen3.5 | QWENVL_QWEN3_5 | a folder with its chat_template.jinja |
"""

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import tiny_processor
from odd_conversations import UNWRITABLE, conversations

from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.families import FAMILIES
from qwenvl_agent.formats import Format, formats_of
from qwenvl_agent.inference.endpoint import to_chat
from qwenvl_agent.prompt import render_prompt, render_row, to_messages
from qwenvl_agent.schema import Request, Turn

FEW, MANY = 40, 1000
NOT_THINK = ("plain", "native", "hybrid", "no_thought")


@dataclass(frozen=True)
class Published:
    family: str
    variable: str
    formats: tuple[str, ...]
    """Those that its checkpoints may be trained in, `think` where the template knows a think block."""


PUBLISHED = {
    "qwen3_vl": Published("qwen3_vl", "QWENVL_PROCESSOR", NOT_THINK),
    "qwen3_vl_moe": Published("qwen3_vl_moe", "QWENVL_PROCESSOR", NOT_THINK),
    "qwen3_vl_thinking": Published("qwen3_vl", "QWENVL_THINKING_TEMPLATE", ("think",)),
    "qwen3_vl_moe_thinking": Published("qwen3_vl_moe", "QWENVL_THINKING_TEMPLATE", ("think",)),
    "qwen3_5": Published("qwen3_5", "QWENVL_QWEN3_5", (*NOT_THINK, "think")),
}


class Written:
    """What a published template makes of conversations."""

    def __init__(self, published: Published):
        path = os.environ.get(published.variable)
        if not path:
            pytest.skip(f"{published.variable} names no chat template (see the head of this file)")
        file = Path(path) / "chat_template.jinja" if Path(path).is_dir() else Path(path)
        self.text = file.read_text(encoding="utf-8")
        self.tokenizer = tiny_processor(1).tokenizer  # where the tokens are does not change the text

    def __call__(self, messages: list[dict], tools: list[dict] | None, is_prompt: bool, fmt: Format) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            tools=tools,
            tokenize=False,
            chat_template=self.text,
            add_generation_prompt=is_prompt,
            enable_thinking=fmt.name == "think",
        )


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request) -> Published:
    return PUBLISHED[request.param]


@pytest.fixture(scope="module")
def written(published) -> Written:
    return Written(published)


def compare(published: Published, written: Written, num: int) -> Counter:
    """How many texts were equal, and of how many conversations the family cannot write a call; fails at a difference.

    Prompts also as a server gets them: as messages of plain text, with all that the template would add written out.
    """
    counts: Counter = Counter()
    for name in published.formats:
        fmt = formats_of(FAMILIES[published.family])[name]
        for i, (request, turn) in enumerate(conversations(num, seed=0)):
            try:
                texts = render_prompt(request, fmt).text, render_row(request, turn, fmt).text
            except ValueError as error:
                assert UNWRITABLE in str(error) and published.family == "qwen3_5" and holds_unwritable(request, turn)
                counts["refused"] += 1
                continue
            served = to_chat(texts[0], ["data:,"] * texts[0].count(fmt.family.template.image), fmt.family, fmt.opening)
            assert written(served, None, True, fmt) == texts[0], f"conversation {i} of seed 0, format {name}, served"
            for text, answer in zip(texts, (None, turn), strict=True):
                wanted = written(*to_messages(request, answer, fmt), answer is None, fmt)
                assert text == wanted, f"conversation {i} of seed 0, format {name}"
                counts["equal"] += 1
    return counts


def holds_unwritable(request: Request, turn: Turn) -> bool:
    turns = [*(step.turn for step in request.history), turn]
    return any(UNWRITABLE in json.dumps(call.arguments) for one in turns for call in one.tool_calls)


def test_prompts_and_rows_equal_the_published_template(published, written):
    counts = compare(published, written, FEW)
    assert counts["equal"] + 2 * counts["refused"] == 2 * FEW * len(published.formats)
    assert counts["refused"] < counts["equal"] / 10


@pytest.mark.slow
def test_a_thousand_prompts_and_rows_equal_the_published_template(published, written):
    counts = compare(published, written, MANY)
    print(f"{published.family} {', '.join(published.formats)}: {dict(counts)}")
    assert counts["equal"] + 2 * counts["refused"] == 2 * MANY * len(published.formats)


# an assistant that goes on after its tools


def called(name: str, **arguments) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}
MESSAGES = [
    {"role": "system", "content": "You look."},
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "I look up.", "tool_calls": [called("look", at="up"), called("look", at="left")]},
    {"role": "tool", "content": '{"seen": "a tree"}'},
    {"role": "tool", "content": '{"seen": "nothing"}'},
    {"role": "assistant", "content": "", "tool_calls": [called("look", at="down")]},
    {"role": "tool", "content": '{"seen": "the tiger"}'},
    {"role": "assistant", "content": "It is below."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "I look again.", "tool_calls": [called("look", at="down")]},
    {"role": "tool", "content": '{"seen": "nothing"}'},
    {"role": "assistant", "content": "It has gone."},
]


def as_thinking(message: dict) -> dict:
    """A turn's words before its calls are its thought: what a Thinking checkpoint's own data call reasoning_content."""
    if not message.get("tool_calls"):
        return message | ({"reasoning_content": ""} if message["role"] == "assistant" else {})
    return message | {"content": "", "reasoning_content": message["content"]}


def test_rows_of_a_chat_file_are_the_templates_of_its_own_messages(published, written, tmp_path):
    """No user speaks between a tool's answer and the assistant's next turn, so none stands in the prompt."""
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": MESSAGES, "tools": [TOOL]}) + "\n")
    source = SourceConfig(path=str(tmp_path / "chat.jsonl"), kind="chat")
    config = DataConfig(sources=(source,), cache_dir=str(tmp_path / "cache"), eval_fraction=0.0)
    name = "think" if published.formats == ("think",) else "native"
    fmt = formats_of(FAMILIES[published.family])[name]
    rows = build_rows(config, PromptConfig(format=name, history_steps=9)).train
    ends = [i for i, message in enumerate(MESSAGES) if message["role"] == "assistant"]
    messages = [as_thinking(message) for message in MESSAGES] if name == "think" else MESSAGES
    assert len(rows) == len(ends) == 5
    texts = {render_row(row.request, row.turn, fmt).text for row in rows}
    assert texts == {written(messages[: end + 1], [TOOL], False, fmt) for end in ends}
    prompts = {render_prompt(row.request, fmt).text for row in rows}
    assert prompts == {written(messages[:end], [TOOL], True, fmt) for end in ends}
