"""Format think and the Thinking checkpoints: their template, what a later prompt shows, and an end to long thoughts."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOOLS, TURNS, move, request_of, tiny_processor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_run import save_tiny_checkpoint, tiny_config

from qwenvl_agent.config import EvalConfig, ModelConfig, PromptConfig, TrainConfig, VisionConfig, build_config
from qwenvl_agent.data.collator import Collator, build_collator
from qwenvl_agent.data.masks import MaskAudit
from qwenvl_agent.export import opens_with, save_processor
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.inference.endpoint import EndpointPolicy, to_chat
from qwenvl_agent.inference.policy import ModelPolicy
from qwenvl_agent.inference.thought_budget import ThoughtBudget
from qwenvl_agent.model.build import build_model, build_processor
from qwenvl_agent.prompt import render_prompt, render_row, to_messages
from qwenvl_agent.schema import Observation, Picture, Request, Row, Step, Tool, ToolCall, ToolResult, Turn

THINK = FORMATS["think"]
GO = Turn("Go.", (move(),))
OPENED = "<|im_start|>assistant\n<think>\n"
CALL = '<tool_call>\n{"name": "move", "arguments": {"actions": [{"direction": "RIGHT", "steps": 2}]}}\n</tool_call>'


@pytest.fixture(scope="module")
def template():
    """Function from a conversation to the text of the Thinking checkpoints' chat_template.jinja."""
    path = os.environ.get("QWENVL_THINKING_TEMPLATE")
    if not path:
        pytest.skip("QWENVL_THINKING_TEMPLATE names no chat_template.jinja of a Qwen3-VL Thinking checkpoint")
    tokenizer, text = tiny_processor(1).tokenizer, Path(path).read_text(encoding="utf-8")

    def render(request: Request, turn: Turn | None) -> str:
        messages, tools = to_messages(request, turn, THINK)
        return tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=turn is None, chat_template=text
        )

    return render


# the template


@pytest.mark.parametrize("tools", [TOOLS, ()], ids=["tools", "no_tools"])
@pytest.mark.parametrize(("num_steps", "num_pictures"), [(0, 0), (0, 2), (6, 1)])
def test_text_equals_the_thinking_template(template, tools, num_steps, num_pictures):
    request = request_of(num_steps, num_pictures, size=32, tools=tools)
    assert render_prompt(request, THINK).text == template(request, None)
    for turn in TURNS:
        assert render_row(request, turn, THINK).text == template(request, turn)


ODD = st.lists(st.sampled_from(["<|im_end|>", "</think>", "<tool_response>", "\n", '"', "호"]) | st.text(max_size=5))
ODD = ODD.map("".join)


@given(system=ODD, seen=ODD, result=ODD)
@settings(max_examples=60, deadline=None)
def test_text_equals_the_thinking_template_for_any_text(template, system, seen, result):
    step = Step(Observation(seen), GO, (ToolResult("move", {result: [result]}),))
    request = Request(system, TOOLS, (step,), Observation(seen))
    assert render_row(request, TURNS[1], THINK).text == template(request, TURNS[1])


def test_a_later_prompt_shows_an_earlier_turn_without_its_thought():
    request = request_of(3, 0)
    text = render_prompt(request, THINK).text
    assert text.endswith("<|im_start|>assistant\n<think>\n") and text.count("<think>") == 1
    for step in request.history:
        assert not step.turn.thought or step.turn.thought not in text
        assert "".join(span.text for span in THINK.render_past(step.turn)) in text


def test_a_thought_stays_while_only_tools_have_answered():
    """As the published template has it: the model goes on thinking where it was."""
    went = Step(Observation(""), GO, (ToolResult("move", {"status": "ok"}),))
    silent = replace(went, turn=Turn(tool_calls=(move(),)))
    request = Request("", TOOLS, (replace(went, observation=Observation("Go.")), went, silent), Observation(""))
    text = render_prompt(request, THINK).text
    assert text.count("<think>\nGo.\n</think>\n\n<tool_call>") == 2 and text.count("<think>") == 3
    assert text.count("<|im_start|>user\n") == 1 + 3 and text.endswith("</tool_response><|im_end|>\n" + OPENED)
    asked = replace(request, observation=Observation("And now?"))
    assert render_prompt(asked, THINK).text.count("<think>") == 1


def test_each_prompt_is_the_beginning_of_its_row_to_the_token():
    """Without a thought too, where the opening's newline and the closing's would be one token."""
    processor = tiny_processor(1)
    processor.tokenizer.add_tokens(["\n\n"])
    collator = Collator(processor, THINK, PromptConfig(format="think"), VisionConfig(tiles=10), TrainConfig())
    for turn in (*TURNS, Turn(tool_calls=(move(),))):
        for num_steps in (0, 2):
            request = request_of(num_steps, 1)
            prompt = collator.encode(request, None, "r").input_ids
            sample = collator.sample(Row("r", request, turn))
            encoded = sample.encoded
            assert np.array_equal(encoded.input_ids[: len(prompt)], prompt)
            assert (sample.labels[len(prompt) : -1] >= 0).all() and (sample.labels[: len(prompt)] < 0).all()
            audit = MaskAudit(processor.tokenizer, opening=THINK.opening)
            audit.check(encoded.input_ids, sample.labels, sample.parts, encoded.spans, encoded.num_turns)


# answers


@pytest.mark.parametrize(
    ("text", "turn", "repairs", "error"),
    [
        (f"Go.\n</think>\n\n{CALL}<|im_end|>", GO, (), ""),
        (f"\n</think>\n\n{CALL}", Turn(tool_calls=(move(),)), (), ""),
        (f"<think>\nGo.\n</think>\n\n{CALL}", GO, ("repeated_think_tag",), ""),
        (f"Go.\n{CALL}", GO, ("missing_think_end",), ""),
        (f"Go.\n</think>\n\nSo I go.\n{CALL}", GO, ("text_before_call",), ""),
        (f"Thought: Go.\n</think>\n\n{CALL}", GO, ("marker_in_thought",), ""),
        (f"Go.\n</think>\n\n{CALL}\nDone", GO, ("text_after_call",), ""),
        ("Hm.\n</think>\n\nThere is none.", Turn(text="There is none."), ("dropped_thought",), ""),
        ("Hm, and on and on", Turn(), (), "unclosed_thought"),
        ("Hm.\n</think>", Turn(), (), "no_call"),
        (f"a</think>b</think>{CALL}", Turn(), (), "control_token"),
        (f"a<|im_start|></think>{CALL}", Turn(), (), "control_token"),
        (f"{CALL}</think>{CALL}", Turn(), (), "control_token"),
        ("  ", Turn(), (), "empty"),
    ],
)
def test_what_an_answer_is_read_as(text, turn, repairs, error):
    answer = THINK.parse(text, TOOLS)
    assert (answer.turn, answer.repairs, answer.error, answer.text) == (turn, repairs, error, text)


# checkpoints


def test_a_thinking_checkpoint_takes_no_other_format(tmp_path):
    base = save_tiny_checkpoint(tmp_path / "base")
    (tmp_path / "Qwen3-VL-2B-Thinking").symlink_to(base)
    for path, text in ((tmp_path / "Qwen3-VL-2B-Thinking", None), (base, "<|im_start|>assistant\n<think>\n")):
        if text:
            (base / "chat_template.jinja").write_text(text)
        config = tiny_config(tmp_path, path, tmp_path / "x.jsonl")
        processor = build_processor(config.model, config.vision)
        with pytest.raises(ValueError, match="is a Thinking checkpoint, and prompt.format is 'native'.*=think"):
            build_collator(processor, config)
        thinking = replace(config, prompt=PromptConfig(format="think"))
        assert build_collator(processor, thinking).fmt.name == "think"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": {"format": "think", "supervise_history": True}}, "would teach not to think"),
        ({"eval": {"max_thought_tokens": 5}}, "whose thoughts have no end"),
    ],
)
def test_what_does_not_go_with_thinking_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        build_config({"name": "x", "model": {"path": "tiny"}} | values)


def test_an_exported_folder_begins_answers_as_the_run_did(tmp_path):
    """A server of the folder makes the prompt of the run out of plain messages, whatever the base's own template."""
    base = save_tiny_checkpoint(tmp_path / "base")
    config = tiny_config(tmp_path, base, tmp_path / "x.jsonl", prompt={"format": "think"})
    processor = build_processor(config.model, config.vision)
    processor.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    save_processor(tmp_path / "out", config, processor, False)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert opens_with(tokenizer, "<|im_start|>assistant\n<think>\n")
    prompt = render_prompt(request_of(2, 0), THINK).text
    messages = to_chat(prompt, [], opening=THINK.opening)
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == prompt


# an end to long thoughts


def test_a_thought_at_its_limit_is_ended_token_by_token():
    budget = ThoughtBudget(3, 2, [7, 8, 9], end_id=8, constraint=None)
    written = [[], [], []]
    wishes = {0: [1, 2, 3, 4, 5, 6], 1: [8, 1, 1, 1, 1, 1], 2: [1, 8, 5, 5, 5, 5]}
    for step in range(6):
        logits = torch.zeros(3, 10)
        for row in range(3):
            logits[row, wishes[row][step]] = 1.0
        ids = budget.masked([0, 1, 2], logits).argmax(-1).tolist()
        budget.advance([0, 1, 2], ids)
        for row in range(3):
            written[row].append(ids[row])
    assert written == [[1, 2, 7, 8, 9, 6], [8, 1, 1, 1, 1, 1], [1, 8, 5, 5, 5, 5]]
    assert budget.cut == {0}


PARAMETERS = {"type": "object", "properties": {"direction": {"enum": ["UP", "DOWN"]}}, "required": ["direction"]}


@pytest.mark.parametrize("constrained", [False, True])
def test_a_policy_ends_thoughts_and_counts_them(tmp_path, constrained):
    base = save_tiny_checkpoint(tmp_path / "base")
    model_cfg = ModelConfig(path=str(base), method="full", dtype="float32", autocast=False)
    vision_cfg = VisionConfig(max_tokens_per_image=16, min_tokens_per_image=4)
    processor = build_processor(model_cfg, vision_cfg)
    collator = Collator(processor, THINK, PromptConfig(format="think"), vision_cfg, TrainConfig())
    settings = {"max_new_tokens": 60, "temperature": 1.0, "max_thought_tokens": 6, "constrained": constrained}
    policy = ModelPolicy(build_model(model_cfg, "cpu"), processor, collator, THINK, EvalConfig(**settings))
    picture = Picture.from_image(Image.new("RGB", (64, 64), "red"))
    tools = (Tool("move", "Walk.", PARAMETERS),)
    answers = policy.act([Request("You walk.", tools, (), Observation("Where?", (picture,)))] * 8)
    if constrained:  # a random model ends no thought by itself, and its answers end only inside a grammar
        ended = [answer for answer in answers if not answer.error]
        assert ended and all(answer.repairs == ("thought_cut",) and answer.turn.tool_calls for answer in ended)
    assert all("\n</think>\n\n" in answer.text for answer in answers)


def test_a_served_model_has_no_such_limit():
    with pytest.raises(ValueError, match="eval.max_thought_tokens is 9 with a served model"):
        EndpointPolicy("http://127.0.0.1:1/v1", "m", None, THINK, EvalConfig(max_thought_tokens=9))


def test_an_unwritten_call_is_no_part_of_a_thought():
    turn = Turn("Go.", (ToolCall("move", {"actions": []}),))
    assert [span.part for span in THINK.render(turn)] == ["thought", "call"]
    assert [span.part for span in THINK.render(replace(turn, thought=""))] == ["call"]
    assert [span.part for span in THINK.render_past(turn)] == ["call"]
