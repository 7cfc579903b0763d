import pytest
import torch
from torch import nn

from qwenvl_agent.config import TrainConfig
from qwenvl_agent.training.optim import build_optimizer, learning_rate_at, set_learning_rate

CONFIG = TrainConfig(learning_rate=1.0, warmup_fraction=0.2, min_lr_fraction=0.1, weight_decay=0.5)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_only_trainable_matrices_decay():
    model = Model()
    decay, no_decay = build_optimizer(model, CONFIG).param_groups
    assert [id(p) for p in decay["params"]] == [id(model.linear.weight)] and decay["weight_decay"] == 0.5
    expected = [model.embed.weight, model.linear.bias, model.norm.weight, model.norm.bias]
    assert [id(p) for p in no_decay["params"]] == [id(p) for p in expected] and no_decay["weight_decay"] == 0.0


def test_the_learning_rate_warms_up_from_above_zero_and_ends_at_its_least():
    rates = [learning_rate_at(step, 10, CONFIG) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[9] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert learning_rate_at(12, 10, CONFIG) == pytest.approx(0.1)


@pytest.mark.parametrize("max_steps", [1, 2])
def test_the_shortest_runs_learn_too(max_steps):
    assert all(learning_rate_at(step, max_steps, CONFIG) > 0 for step in range(max_steps))


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert learning_rate_at(0, 10, TrainConfig(learning_rate=1.0, warmup_fraction=0.0)) == 1.0


def test_set_learning_rate_reaches_every_group():
    optimizer = build_optimizer(Model(), CONFIG)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert isinstance(optimizer, torch.optim.AdamW)
