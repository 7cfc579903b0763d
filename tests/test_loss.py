import pytest
import torch
from tiny_run import save_dataset, save_tiny_checkpoint, tiny_config
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.masks import IGNORE_INDEX, PARTS
from qwenvl_agent.data.supervision import count_supervised, supervised_places
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.model.build import build_model, build_processor
from qwenvl_agent.model.call import model_inputs, supervised_positions
from qwenvl_agent.training.loss import token_losses


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """(model, batch of 4 rows of unequal length, function from rows to a batch)."""
    directory = tmp_path_factory.mktemp("loss")
    config = tiny_config(
        directory,
        save_tiny_checkpoint(directory / "base"),
        save_dataset(directory / "data", 8),
        train={"weight_thought": 0.5},
        model={"lora_dropout": 0.0},
    )
    rows = build_rows(config.data, config.prompt).train
    processor = build_processor(config.model, config.vision)
    collator = Collator(processor, FORMATS["native"], config.prompt, config.vision, config.train)
    model = build_model(config.model).train()
    return model, [rows[i] for i in range(4)], collator


def test_the_logit_at_t_is_scored_against_the_label_at_t_plus_1(setting):
    """The same losses as all logits shifted by hand give, position by position."""
    model, rows, collator = setting
    batch = collator(rows)
    tokens = token_losses(model, batch)
    logits = model(**model_inputs(batch), use_cache=False).logits
    expected, parts, weights = [], [], []
    for row in range(4):
        for t in range(batch["labels"].shape[1] - 1):
            label = batch["labels"][row, t + 1]
            if label != IGNORE_INDEX:
                expected.append(cross_entropy(logits[row, t], label))
                parts.append(batch["parts"][row, t + 1])
                weights.append(batch["loss_weights"][row, t + 1])
    torch.testing.assert_close(tokens.losses, torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert batch["parts"].flatten()[batch["supervised"] + 1].tolist() == torch.stack(parts).tolist()
    assert tokens.weights.tolist() == torch.stack(weights).tolist()
    assert set(tokens.weights.tolist()) == {0.5, 1.0}


def test_logits_are_made_at_supervised_positions_only(setting):
    model, rows, collator = setting
    batch = collator(rows)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        token_losses(model, batch)
    head = model.get_base_model().lm_head
    num_supervised = (batch["labels"] != IGNORE_INDEX).sum().item()
    flops = next(sum(kinds.values()) for name, kinds in counter.get_flop_counts().items() if name.endswith(".lm_head"))
    assert flops == 2 * num_supervised * head.weight.numel() < 2 * batch["labels"].numel() * head.weight.numel()


def test_a_label_at_the_first_position_has_no_logit():
    labels = torch.tensor([[7, IGNORE_INDEX, 8], [IGNORE_INDEX, 9, 9]])
    assert supervised_positions(labels).tolist() == [[False, True, False], [True, True, False]]
    assert supervised_places(labels).tolist() == [1, 3, 4]


def test_what_a_step_must_know_is_counted_before_it():
    """Two rows, one of which calls a tool; the token with a label at the first place counts for nothing."""
    thought, call, end = (PARTS.index(part) for part in ("thought", "call", "end"))
    batch = {
        "labels": torch.tensor([[7, 7, IGNORE_INDEX, 8], [IGNORE_INDEX, 9, 9, 9]]),
        "loss_weights": torch.tensor([[5.0, 0.5, 0.0, 2.0], [0.0, 0.25, 1.0, 0.0]]),
        "parts": torch.tensor([[thought, thought, 0, call], [0, thought, call, end]], dtype=torch.int8),
        "row_index": torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    batch["supervised"] = supervised_places(batch["labels"])
    counted = count_supervised(batch, ["move", ""])
    assert batch["supervised"].tolist() == [0, 2, 4, 5, 6]
    assert (counted["loss_weight"], counted["num_tokens"]) == (3.75, 7)
    names, is_in = counted["group_names"], counted["in_group"].int().tolist()
    assert dict(zip(names, zip(counted["group_tokens"], is_in, strict=True), strict=True)) == {
        "loss_part/thought": (2, [1, 0, 1, 0, 0]),
        "loss_part/call": (2, [0, 1, 0, 1, 0]),
        "loss_part/end": (1, [0, 0, 0, 0, 1]),
        "loss_tool/move": (1, [0, 1, 0, 0, 0]),
    }
    nothing = batch | {"labels": torch.full_like(batch["labels"], IGNORE_INDEX)}
    nothing["supervised"] = supervised_places(nothing["labels"])
    counted = count_supervised(nothing, ["", ""])
    assert (counted["loss_weight"], counted["group_names"], counted["in_group"].shape) == (0.0, [], (0, 0))


def test_a_batch_without_supervised_tokens_still_has_a_gradient_to_reduce(setting):
    """Ranks that wait for each other must all run backward."""
    model, rows, collator = setting
    batch = collator(rows)
    batch["supervised"] = batch["supervised"][:0]
    loss = token_losses(model, batch).weighted_sum
    assert loss.item() == 0.0
    loss.backward()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rows_filled_up_on_the_right_need_no_mask(setting, attention):
    """Losses and gradients are those with the mask, although the rows' lengths differ."""
    model, rows, collator = setting
    batch = collator(rows)
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 1
    targets = batch["labels"].flatten()[batch["supervised"] + 1]
    config = model.config.get_text_config()
    before, config._attn_implementation = config._attn_implementation, attention
    try:
        found = []
        for masked in (True, False):
            model.zero_grad()
            if masked:
                inputs = model_inputs(batch) | {"places": batch["supervised"], "targets": targets, "use_cache": False}
                losses = model(**inputs).logits
            else:
                losses = token_losses(model, batch).losses
            losses.sum().backward()
            found.append(
                (losses.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
            )
    finally:
        config._attn_implementation = before
    for masked, free in zip(*found, strict=True):
        torch.testing.assert_close(free, masked, rtol=1e-5, atol=1e-6)
