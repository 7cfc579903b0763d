import pytest
import torch
from tiny_run import save_dataset, save_tiny_checkpoint, tiny_config
from torch.nn.functional import cross_entropy

from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.masks import IGNORE_INDEX
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.model.build import build_model, build_processor
from qwenvl_agent.model.call import model_inputs, supervised_positions
from qwenvl_agent.training.loss import supervised_weight, token_losses


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
    assert tokens.parts.tolist() == torch.stack(parts).tolist()
    assert tokens.weights.tolist() == torch.stack(weights).tolist()
    assert set(tokens.weights.tolist()) == {0.5, 1.0}


def test_logits_are_made_at_supervised_positions_only(setting):
    model, rows, collator = setting
    batch = collator(rows)
    seen = []
    head = model.get_base_model().lm_head
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:-1].numel()))
    token_losses(model, batch)
    handle.remove()
    num_supervised = (batch["labels"] != IGNORE_INDEX).sum().item()
    assert seen == [num_supervised]


def test_a_label_at_the_first_position_has_no_logit_and_no_weight():
    batch = {"labels": torch.tensor([[7, IGNORE_INDEX, 8]]), "loss_weights": torch.tensor([[5.0, 0.0, 2.0]])}
    assert supervised_positions(batch["labels"]).tolist() == [[False, True, False]]
    assert supervised_weight([batch, batch]) == 4.0


def test_rows_are_told_apart(setting):
    model, rows, collator = setting
    batch = collator(rows)
    counts = (batch["labels"] != IGNORE_INDEX).sum(1)
    assert torch.bincount(token_losses(model, batch).rows).tolist() == counts.tolist()


def test_a_batch_without_supervised_tokens_still_has_a_gradient_to_reduce(setting):
    """Ranks that wait for each other must all run backward."""
    model, rows, collator = setting
    batch = collator(rows)
    batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
    loss = token_losses(model, batch).weighted_sum
    assert loss.item() == 0.0
    loss.backward()
