"""Pictures whose sizes and places the host knows: the model's own results, in one call of attention for each size."""

from contextlib import contextmanager

import pytest
import torch
from test_packing import ROWS, row
from tiny_run import save_tiny_checkpoint
from transformers import AttentionInterface

from qwenvl_agent.config import ModelConfig, PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.families.pictures import attend_by_size, encode
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.model.attention import attend
from qwenvl_agent.model.build import base_of, build_model, build_processor
from qwenvl_agent.model.call import model_inputs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("base")))


def parts(base: str, attention: str):
    """A model that trains in full, tower included, and what makes its batches."""
    cfg = ModelConfig(path=base, method="full", train_vision=True, dtype="float32", autocast=False, attention=attention)
    vision = VisionConfig(max_tokens_per_image=16, min_tokens_per_image=4)
    collator = Collator(
        build_processor(cfg, vision), FORMATS["native"], PromptConfig(history_steps=1), vision, TrainConfig()
    )
    return build_model(cfg, "cpu").train(), collator


def logits_and_gradient(model, inputs: dict):
    model.zero_grad()
    logits = model(**inputs, use_cache=False).logits
    (logits * torch.linspace(-1, 1, logits.shape[-1])).mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_and_gradients_are_those_of_the_stock_way(base, attention):
    model, collator = parts(base, attention)
    batch = collator(ROWS)
    inputs = model_inputs(batch)
    wanted, wanted_gradients = logits_and_gradient(model, inputs)
    known = {key: batch[key] for key in ("picture_grids", "picture_places")}
    logits, gradients = logits_and_gradient(model, inputs | known)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=1e-4, atol=1e-7, msg=name)


def test_places_are_those_of_the_pictures_tokens(base):
    _, collator = parts(base, "eager")
    batch = collator(ROWS)
    ids = batch["input_ids"].flatten()
    assert (ids[batch["picture_places"]] == collator.image_pad_id).all()
    assert len(batch["picture_places"]) == (ids == collator.image_pad_id).sum()
    assert batch["picture_grids"] == batch["image_grid_thw"].tolist()
    without = collator([row(3, pictures=0)])
    assert not {"picture_grids", "picture_places"} & without.keys()


@contextmanager
def attention_shapes():
    """Of the queries of each call of sdpa."""
    seen = []

    def watched(module, query, *rest, **options):
        seen.append(tuple(query.shape))
        return attend(module, query, *rest, **options)

    AttentionInterface.register("sdpa", watched)
    try:
        yield seen
    finally:
        AttentionInterface.register("sdpa", attend)


def test_a_size_is_one_call_in_each_block(base):
    model, collator = parts(base, "sdpa")
    tower = base_of(model).model.visual
    pixels = torch.randn(4 * 16 + 2 * 32, tower.config.in_channels * 2 * 16 * 16)
    grids = [(1, 4, 4), (1, 4, 8), (1, 4, 4), (1, 8, 4), (1, 4, 4), (1, 4, 4)]
    with attention_shapes() as seen:
        found = encode(tower, pixels, grids)
    heads, depth = tower.config.num_heads, tower.config.depth
    size = tower.config.hidden_size // heads
    assert seen == [(4, heads, 16, size), (2, heads, 32, size)] * depth
    stock = tower(pixels, grid_thw=torch.tensor(grids))
    torch.testing.assert_close(found.pooler_output, stock.pooler_output, rtol=1e-5, atol=1e-6)
    for level, wanted in zip(found.deepstack_features, stock.deepstack_features, strict=True):
        torch.testing.assert_close(level, wanted, rtol=1e-5, atol=1e-6)


def test_outputs_stand_in_the_order_of_the_pictures():
    values = torch.arange(9.0)[:, None]
    calls = []

    def double(states):
        calls.append(states.shape[:2])
        return states * 2

    assert attend_by_size(double, [2, 3, 2, 2], (values,), at_once=True).flatten().tolist() == list(range(0, 18, 2))
    assert calls == [(3, 2), (1, 3)]
    calls.clear()
    attend_by_size(double, [2, 3, 2, 2], (values,), at_once=False)
    assert calls == [(1, 2), (1, 3), (1, 2), (1, 2)]
