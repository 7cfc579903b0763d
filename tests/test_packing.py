"""Packs: planned by hand here, and the same losses and gradients as padded rows."""

import numpy as np
import pytest
import torch
from tiny_run import save_tiny_checkpoint
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qwenvl_agent.config import ModelConfig, PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.masks import IGNORE_INDEX
from qwenvl_agent.data.packing import PADDING, join, pad, plan_packs
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.model import attention
from qwenvl_agent.model.attention import pack_mask
from qwenvl_agent.model.build import build_model, build_processor
from qwenvl_agent.schema import Observation, Picture, Request, Row, Step, Tool, ToolCall, Turn
from qwenvl_agent.training.loss import token_losses


def plan(rows: list[str], max_tokens: int, may_share: int = 9):
    return plan_packs([np.array([ord(c) for c in row]) for row in rows], [may_share] * len(rows), max_tokens)


def test_rows_that_begin_alike_are_packed_together_with_their_beginning_once():
    assert plan(["abc12", "abc4567", "abc3"], 10) == [([0, 2, 1], 3)]  # 3 + 2 + 1 + 4 tokens, sorted
    assert plan(["abc12", "xyz", "abc3"], 6) == [([0, 2], 3), ([1], 0)]


def test_no_more_is_shared_than_each_row_may_give():
    assert plan(["abc1", "abc2"], 10, may_share=2) == [([0, 1], 2)]
    assert plan(["abc1", "abc2"], 10, may_share=0) == [([0, 1], 0)]


def test_a_row_that_would_cost_the_others_their_beginning_gets_a_pack_of_its_own():
    # All together 24 tokens; apart 8 + 1 + 1 and 6.
    assert plan(["abcdefgh1", "abcdefgh2", "xyzuvw"], 99) == [([0, 1], 8), ([2], 0)]


def test_packs_are_even_and_a_long_row_is_alone():
    assert [members for members, _ in plan(["aaa", "bbb", "ccc", "ddd"], 10, may_share=0)] == [[0, 1], [2, 3]]
    assert plan(["a" * 20, "bb"], 10) == [([0], 0), ([1], 0)]


def test_a_row_alone_shares_with_nobody():
    assert plan(["abc"], 10) == [([0], 0)]


def test_columns_are_joined_behind_the_common_beginning():
    rows = [{"input_ids": np.array([7, 8, i]), "position_ids": np.tile([0, 1, 2], (4, 1))} for i in (1, 2)]
    joined = join(rows, 2)
    assert joined["input_ids"].tolist() == [7, 8, 1, 2]
    assert joined["position_ids"].tolist() == [[0, 1, 2, 2]] * 4
    assert joined["segments"].tolist() == [0, 0, 1, 2]


def test_padding_stands_on_the_side_that_is_asked_for():
    rows = [{"input_ids": np.array([1, 2]), "position_ids": np.ones((4, 2), int)}, {"input_ids": np.array([3])}]
    rows[1]["position_ids"] = np.ones((4, 1), int)
    assert pad(rows, {"input_ids": 9})["input_ids"].tolist() == [[1, 2], [3, 9]]
    left = pad(rows, {"input_ids": 9}, left=True)
    assert left["input_ids"].tolist() == [[1, 2], [9, 3]] and left["position_ids"].shape == (4, 2, 2)
    assert left["position_ids"][0].tolist() == [[1, 1], [0, 1]]


def test_a_token_sees_the_common_beginning_and_its_own_row():
    mask = pack_mask(torch.tensor([[0, 1, 1, 2, PADDING]]))
    assert mask.shape == (1, 1, 5, 5) and mask.dtype == torch.float32
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]


def test_attention_row_by_row_is_that_of_the_whole_pack_and_multiplies_less(monkeypatch):
    """A pack of 4 tokens that 2 rows share, 1 row without a beginning, both filled up."""
    sizes = [[4, 3, 5], [0, 6]]
    segments = torch.tensor([[0] * 4 + [1] * 3 + [2] * 5, [1] * 6 + [PADDING] * 6])
    queries, keys, values = torch.randn(3, 2, 2, 12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = pack_mask(segments).double()
    products = []

    def watch(module, query, key, *rest, **options):
        products.append(query.shape[2] * key.shape[2])
        return sdpa_attention_forward(module, query, key, *rest, **options)

    monkeypatch.setattr(attention, "sdpa_attention_forward", watch)
    whole, _ = attention.attend(nn.Module(), queries, keys, values, mask)
    by_row, _ = attention.attend(nn.Module(), queries, keys, values, mask, pack_sizes=sizes)
    is_token = segments != PADDING
    torch.testing.assert_close(by_row[is_token], whole[is_token])
    assert (by_row[~is_token] == 0).all()
    assert products == [12 * 12, 4 * 4, 3 * 7, 5 * 9, 6 * 6]


TOOLS = (Tool("move", "Walk.", {"type": "object", "properties": {"direction": {"type": "string"}}}),)


def row(i: int, history: int = 0, pictures: int = 1, system: str = "You walk.") -> Row:
    generator = np.random.default_rng(i)

    def picture() -> Picture:
        from PIL import Image

        return Picture.from_image(
            Image.fromarray(generator.integers(0, 255, (64, 64 * (1 + i % 2), 3), dtype=np.uint8))
        )

    def turn(n: int) -> Turn:
        return Turn("I go on. " * (1 + (i + n) % 3), (ToolCall("move", {"direction": "up" if i % 2 else "down"}),))

    steps = [Step(Observation(f"Then {n}.", (picture(),)), turn(n), ()) for n in range(history)]
    observation = Observation("Where? " * (1 + i % 4), tuple(picture() for _ in range(pictures)))
    return Row(f"{i}", Request(system, TOOLS, tuple(steps), observation), turn(99))


ROWS = [row(0), row(1), row(2, history=1), row(3, pictures=0), row(4, system="You run."), row(5, pictures=2), row(6)]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def parts(request, tmp_path_factory):
    base = str(save_tiny_checkpoint(tmp_path_factory.mktemp("base")))
    model_cfg = ModelConfig(path=base, method="full", dtype="float32", autocast=False, attention=request.param)
    vision_cfg = VisionConfig(max_tokens_per_image=16, min_tokens_per_image=4)
    processor = build_processor(model_cfg, vision_cfg)
    prompt_cfg, train_cfg = PromptConfig(history_steps=1, supervise_history=True), TrainConfig(weight_thought=0.5)
    return build_model(model_cfg, "cpu").train(), Collator(
        processor, FORMATS["native"], prompt_cfg, vision_cfg, train_cfg
    )


def losses_and_gradient(model, batch):
    model.zero_grad()
    tokens = token_losses(model, batch)
    tokens.weighted_sum.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    rows = batch["row_index"].flatten()[batch["supervised"] + 1]
    by_row = [tokens.losses[rows == i].detach() for i in range(len(batch["row_ids"]))]
    return by_row, tokens.weighted_sum.detach(), gradient


@pytest.mark.parametrize("pack_tokens", [100, 400, 100_000])
def test_packed_rows_have_the_losses_and_the_gradient_of_padded_rows(parts, pack_tokens):
    model, collator = parts
    padded, packed = collator(ROWS), collator(ROWS, pack_tokens)
    wanted, total, gradient = losses_and_gradient(model, padded)
    by_row, packed_total, packed_gradient = losses_and_gradient(model, packed)
    for losses, expected in zip(by_row, wanted, strict=True):
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed_total, total, rtol=1e-6, atol=0)
    torch.testing.assert_close(packed_gradient, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_packing_computes_fewer_tokens_and_loses_no_label(parts):
    _, collator = parts
    padded, packed = collator(ROWS), collator(ROWS, 1200)
    assert (packed["labels"] != IGNORE_INDEX).sum() == (padded["labels"] != IGNORE_INDEX).sum()
    assert packed["loss_weights"].sum() == padded["loss_weights"].sum()
    assert packed["attention_mask"].sum() < 0.7 * padded["attention_mask"].sum()
    assert torch.equal(packed["image_grid_thw"].sum(), padded["image_grid_thw"].sum())
    assert "segments" not in padded and "pack_sizes" not in padded
    assert [sum(sizes) for sizes in packed["pack_sizes"]] == packed["attention_mask"].sum(1).tolist()


@pytest.mark.parametrize("pack_tokens", [0, 400])
def test_a_blank_picture_for_the_other_ranks_changes_nothing_and_touches_the_whole_tower(parts, pack_tokens):
    model, collator = parts
    rows = [row(i, pictures=0) for i in range(3)]
    without, blank = collator(rows, pack_tokens), collator(rows, pack_tokens, always_runs_tower=True)
    assert "patches" not in without
    assert blank["patches"].shape[0] == 4 and blank["image_grid_thw"].tolist() == [[1, 2, 2]]
    assert (blank["input_ids"] == collator.image_pad_id).sum() == (blank["mm_token_type_ids"] == 1).sum() == 1
    tower = model.model.visual
    seen = []
    handles = [m.register_forward_hook(lambda *_, n=n: seen.append(n)) for n, m in tower.named_modules()]
    by_row, total, gradient = losses_and_gradient(model, blank)
    for handle in handles:
        handle.remove()
    assert {f"deepstack_merger_list.{i}" for i in range(len(tower.deepstack_merger_list))} | {"merger"} <= set(seen)
    wanted, wanted_total, wanted_gradient = losses_and_gradient(model, without)
    for losses, expected in zip(by_row, wanted, strict=True):
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total, wanted_total, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5 * wanted_gradient.abs().max().item())


def test_a_batch_with_a_picture_gets_no_blank_one(parts):
    _, collator = parts
    batch = collator(ROWS, always_runs_tower=True)
    assert all(torch.equal(batch[key], value) for key, value in collator(ROWS).items() if torch.is_tensor(value))
