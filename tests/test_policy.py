"""A real (random, tiny) Qwen3-VL behind the policy."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_run import save_tiny_checkpoint

from qwenvl_agent.config import EvalConfig, ModelConfig, PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.masks import PARTS
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.inference.policy import ModelPolicy, blank
from qwenvl_agent.model.build import build_model, build_processor
from qwenvl_agent.schema import Observation, Picture, Request, Row, Step, Tool, ToolCall, Turn
from qwenvl_agent.training.loss import token_losses

TOOLS = (Tool("move", "Walk.", {"type": "object", "properties": {"direction": {"type": "string"}}}),)


def picture(colour: str, width: int = 64, height: int = 64) -> Picture:
    return Picture.from_image(Image.new("RGB", (width, height), colour))


def request(colour: str, text: str = "Where?", **size) -> Request:
    return Request("You walk.", TOOLS, (), Observation(text, (picture(colour, **size),)))


def row(colour: str, direction: str) -> Row:
    return Row(f"{colour}/0", request(colour), Turn("There.", [ToolCall("move", {"direction": direction})]))


REQUESTS = [request("red"), request("blue", "Where is the animal of the mission?", width=128), request("green")]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(model, processor, collator): random weights that every test may change only after a copy."""
    path = save_tiny_checkpoint(tmp_path_factory.mktemp("base"))
    model_cfg = ModelConfig(path=str(path), method="full", dtype="float32", autocast=False)
    vision_cfg = VisionConfig(max_tokens_per_image=16, min_tokens_per_image=4)
    processor = build_processor(model_cfg, vision_cfg)
    collator = Collator(processor, FORMATS["native"], PromptConfig(), vision_cfg, TrainConfig())
    return build_model(model_cfg, "cpu"), processor, collator


def build_policy(parts, **options) -> ModelPolicy:
    settings = {"max_new_tokens": 12, "batch_size": 4}
    settings |= {key: options.pop(key) for key in list(options) if key in EvalConfig.__dataclass_fields__}
    model, processor, collator = parts
    return ModelPolicy(model, processor, collator, collator.fmt, EvalConfig(**settings), **options)


def test_an_answer_does_not_depend_on_its_batch(parts):
    policy = build_policy(parts)
    alone = [policy.act([one])[0] for one in REQUESTS]
    assert policy.act(REQUESTS) == alone == build_policy(parts, batch_size=2).act(REQUESTS)


def test_an_endless_answer_has_its_error(parts):
    answers = build_policy(parts, max_new_tokens=3).act(REQUESTS)
    assert [answer.error for answer in answers] == ["endless"] * 3
    assert all(answer.text and answer.turn == Turn() for answer in answers)


def test_text_ends_before_the_end_token(parts):
    policy = build_policy(parts)
    ids = policy.tokenizer("up<|im_end|><|im_end|>")["input_ids"]
    assert policy._text_before_end(ids) == ("up", True)
    assert policy._text_before_end(ids[:-2]) == ("up", False)
    padded_vocabulary = [policy.model.config.text_config.vocab_size - 1]
    assert policy._text_before_end(padded_vocabulary)[1] is False  # an id without a token does not stop the show


def test_sampling_is_repeatable_and_leaves_training_alone(parts):
    model = parts[0]
    model.train()
    model.model.visual.eval()
    try:
        before = torch.get_rng_state()
        modes = [module.training for module in model.modules()]
        texts = [[a.text for a in build_policy(parts, temperature=2.0, seed=s).act(REQUESTS)] for s in (0, 0, 1)]
        assert texts[0] == texts[1] != texts[2]
        assert torch.equal(before, torch.get_rng_state())
        assert [module.training for module in model.modules()] == modes
        assert any(p.requires_grad for p in model.parameters()) and all(p.grad is None for p in model.parameters())
    finally:
        model.eval()


def test_answers_drawn_each_by_itself_do_not_depend_on_the_batch(parts):
    asked = [replace(one, draw=f"{i}/0") for i, one in enumerate(REQUESTS)]
    policy = build_policy(parts, temperature=2.0, draws_each=True)
    texts = [answer.text for answer in policy.act(asked)]
    assert [policy.act([one])[0].text for one in asked] == texts  # and not on what was asked before
    assert build_policy(parts, temperature=2.0, draws_each=True, seed=1).act(asked)[0].text != texts[0]
    assert policy.act([replace(asked[0], draw="0/1")])[0].text != texts[0]


def test_blank_pictures_are_white_and_of_the_same_size():
    history = (Step(REQUESTS[1].observation, Turn(text="hm")),)
    whitened = blank(Request("You walk.", TOOLS, history, REQUESTS[0].observation))
    for observation, width in ((whitened.observation, 64), (whitened.history[0].observation, 128)):
        image = observation.pictures[0].open()
        assert image.size == (width, 64) and image.getcolors() == [(width * 64, (255, 255, 255))]
    assert whitened.observation.text == "Where?"


def test_scores_are_the_training_loss(parts):
    model, _, collator = parts
    rows = [row("red", "LEFT"), row("blue", "RIGHT")]
    scores = build_policy(parts).score(rows)
    with torch.no_grad():
        expected = token_losses(model, collator(rows))
    assert sum(score["loss_sum"] for score in scores) == pytest.approx(expected.losses.sum().item(), rel=1e-5)
    assert sum(score["num_tokens"] for score in scores) == len(expected.losses)
    assert {(score["row_id"], score["part"]) for score in scores} == {
        (one.id, part) for one in rows for part in PARTS if part in ("thought", "call", "end")
    }


def test_a_model_that_learnt_its_rows_gives_their_turns_by_looking(tmp_path):
    model_cfg = ModelConfig(
        path=str(save_tiny_checkpoint(tmp_path)),
        method="full",
        train_vision=True,
        dtype="float32",
        autocast=False,
        gradient_checkpointing=False,
    )
    vision_cfg = VisionConfig(max_tokens_per_image=16, min_tokens_per_image=4)
    processor = build_processor(model_cfg, vision_cfg)
    collator = Collator(processor, FORMATS["native"], PromptConfig(), vision_cfg, TrainConfig())
    model = build_model(model_cfg, "cpu")
    rows = [row("red", "LEFT"), row("blue", "RIGHT")]
    batch = collator(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = token_losses(model, batch).losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    parts = (model, processor, collator)
    requests = [one.request for one in rows]

    answers = build_policy(parts, max_new_tokens=80).act(requests)
    assert [answer.turn for answer in answers] == [one.turn for one in rows]
    assert all(not answer.error and not answer.repairs for answer in answers)
    assert build_policy(parts, max_new_tokens=80, constrained=True).act(requests) == answers  # nothing to hold back
    assert all(s["num_correct"] == s["num_tokens"] for s in build_policy(parts).score(rows))
    blanked = build_policy(parts, max_new_tokens=80, blank_pictures=True).act(requests)
    assert blanked[0] == blanked[1]  # blind, it cannot tell the two apart
