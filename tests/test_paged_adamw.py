"""The 8-bit AdamW: which averages are in 8 bits, no step where one is bad, its state to the bit, and what the planner counts.

bitsandbytes has its kernels for CPUs too. What only a GPU shows: that pages leave it.
"""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import save_dataset, save_tiny_checkpoint, tiny_config
from torch import nn

import train
from qwenvl_agent.config import TrainConfig, build_config, to_json
from qwenvl_agent.model.build import base_of, build_model
from qwenvl_agent.planning.vram import changes, cheapest_fit, find_architecture, optimizer_bytes, read_architecture
from qwenvl_agent.training.checkpoint import describe_changes
from qwenvl_agent.training.optim import build_optimizer
from qwenvl_agent.training.paged_adamw import CODE_BOOKS, check_device
from qwenvl_agent.training.state import load_optimizer_tensors, optimizer_tensors

CPU = torch.device("cpu")
PAGED = TrainConfig(optimizer="paged_adamw_8bit", learning_rate=1e-2, weight_decay=0.1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.linear, self.norm = nn.Embedding(100, 64), nn.Linear(64, 65), nn.LayerNorm(65)

    def forward(self, ids):
        return self.norm(self.linear(self.embed(ids)))


def net(cfg: TrainConfig = PAGED):
    torch.manual_seed(0)
    model = Net()
    return model, build_optimizer(model, cfg)


def step(model, optimizer, number: int, factor: float = 1.0) -> None:
    ids = torch.arange(16) + number
    (model(ids) * torch.arange(65) * factor).sin().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_averages_of_matrices_are_bytes_and_all_others_float32():
    model, optimizer = net()
    step(model, optimizer, 0)
    kinds = {name: optimizer.state[p]["state1"].dtype for name, p in model.named_parameters()}
    assert kinds.pop("linear.weight") == torch.uint8 and set(kinds.values()) == {torch.float32}
    decays = {name for name, p in model.named_parameters() if any(p is q for q in optimizer.param_groups[0]["params"])}
    assert decays == {"linear.weight"} and [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]


def test_its_steps_are_near_those_of_adamw():
    """For the same gradients: bytes cost a twentieth of the way that the weights go, at most."""
    both = net(), net(replace(PAGED, optimizer="adamw"))
    before = both[1][0].linear.weight.detach().clone()
    for number in range(8):
        for model, optimizer in both:
            generator = torch.Generator().manual_seed(number)
            for parameter in model.parameters():
                parameter.grad = 0.5 + torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    ours, plain = (model for model, _ in both)
    assert (ours.linear.weight - plain.linear.weight).norm() < 0.05 * (plain.linear.weight - before).norm()
    torch.testing.assert_close(ours.embed.weight, plain.embed.weight, rtol=0, atol=1e-6)


def test_a_bad_step_changes_nothing_and_the_run_goes_on_as_if_it_had_not_been():
    (model, optimizer), (other, untouched) = net(), net()
    optimizer.found_inf = torch.zeros(())
    for number in range(4):
        step(model, optimizer, number)
        step(other, untouched, number)
        before = weights(model)
        optimizer.found_inf.fill_(1.0)
        step(model, optimizer, number, float("nan"))
        assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
        optimizer.found_inf.zero_()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))


def test_its_state_goes_through_a_file_to_the_bit(tmp_path):
    model, optimizer = net()
    for number in range(3):
        step(model, optimizer, number)
    save_file(optimizer_tensors(model, optimizer), tmp_path / "optimizer.safetensors")
    other, fresh = net()
    other.load_state_dict(model.state_dict())
    load_optimizer_tensors(other, fresh, load_file(tmp_path / "optimizer.safetensors"))
    for number in range(3, 6):
        step(model, optimizer, number)
        step(other, fresh, number)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))
    ours, theirs = optimizer_tensors(model, optimizer), optimizer_tensors(other, fresh)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert ours["linear.weight:step"].item() == 6 and not any(key.endswith(CODE_BOOKS) for key in ours)


def test_the_state_of_another_optimizer_is_refused():
    plain, adamw = net(replace(PAGED, optimizer="adamw"))
    step(plain, adamw, 0)
    model, optimizer = net()
    with pytest.raises(
        ValueError, match=r"the optimizer's state has exp_avg, exp_avg_sq, step, and 8-bit AdamW .* keeps"
    ):
        load_optimizer_tensors(model, optimizer, optimizer_tensors(plain, adamw))


def test_a_device_that_cannot_take_its_step_is_refused_at_the_start():
    with pytest.raises(ValueError, match=r"bitsandbytes \S+ cannot take its step on meta .*set train.optimizer=adamw"):
        check_device(torch.device("meta"))


def test_zero_is_refused_and_a_resumed_run_keeps_its_optimizer(tmp_path):
    with pytest.raises(
        ValueError, match="train.optimizer is 'paged_adamw_8bit' with train.zero_stage 2: DeepSpeed cuts"
    ):
        replace(PAGED, zero_stage=2)
    config = build_config({"name": "run", "model": {"path": "tiny"}, "train": {"optimizer": "paged_adamw_8bit"}})
    saved = to_json(config)
    assert describe_changes(saved, config) == ""
    for before in (
        {**saved["train"], "optimizer": "adamw"},
        {k: v for k, v in saved["train"].items() if k != "optimizer"},
    ):
        with pytest.raises(
            ValueError, match="train.optimizer is 'paged_adamw_8bit', 'adamw' in the checkpoint: the averages"
        ):
            describe_changes(saved | {"train": before}, config)


# real runs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("paged")
    return save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data", 16)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_resumes_to_the_bit(base, tmp_path, method):
    settings = {"max_steps": 4, "save_every": 2, "keep_checkpoints": 9, "optimizer": "paged_adamw_8bit"}
    groups = {"model": {"method": method, "lora_rank": 64}, "train": settings, "eval": {"step_rows": 0}}
    whole, part = (tiny_config(tmp_path, *base, name=name, **groups) for name in ("whole", "part"))
    train.train(whole)
    (part.run_dir / "STOP").parent.mkdir(parents=True)
    train.train(replace(part, train=replace(part.train, max_steps=2)))
    train.train(part, resume=True)
    last = [load_file(config.run_dir / "checkpoints" / "last" / "optimizer.safetensors") for config in (whole, part)]
    assert last[0].keys() == last[1].keys() and all(torch.equal(last[0][key], last[1][key]) for key in last[0])
    assert any(value.dtype == torch.uint8 for value in last[0].values())


# planned


@pytest.mark.parametrize(
    "model",
    [
        {"method": "full"},
        {"method": "full", "train_vision": True},
        {"method": "lora", "lora_rank": 64},
        {"method": "lora", "lora_rank": 64, "lora_places": ["language", "merger", "vision"]},
    ],
)
@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_its_planned_state_is_what_it_keeps(base, tmp_path, model, optimizer):
    config = tiny_config(tmp_path, *base, model=model, train={"optimizer": optimizer})
    trained = build_model(config.model, CPU).train()
    arch = read_architecture(base_of(trained).config.to_dict())
    built = build_optimizer(trained, config.train)
    for parameter in (p for p in trained.parameters() if p.requires_grad):
        parameter.grad = torch.ones_like(parameter)
    built.step()
    kept = [value for state in built.state.values() for key, value in state.items() if key not in ("step", *CODE_BOOKS)]
    assert sum(value.nbytes for value in kept) == optimizer_bytes(config, arch)


def test_it_is_advised_for_full_fine_tuning_on_one_card_alone():
    base_2b = {"path": "Qwen/Qwen3-VL-2B-Instruct", "method": "full", "gradient_checkpointing": True}
    config = build_config({"name": "run", "model": base_2b})
    arch = find_architecture(config.model.path)
    advised = [change.overrides for change in changes(config, 1)]
    assert ("train.optimizer=paged_adamw_8bit",) in advised
    assert ("train.zero_stage=3", "train.cpu_offload=true", "train.optimizer=adamw") in advised
    from qwenvl_agent.planning.vram import budget_row

    change, plan = cheapest_fit(config, arch, lambda c: budget_row(c, arch), 1, 24)
    assert change.overrides[-1] == "train.optimizer=paged_adamw_8bit" and plan.fits(24)
    for several in (1, 2):
        for change in changes(replace(config, model=replace(config.model, method="lora")), several):
            change.apply(config)
    paged = replace(config, train=replace(config.train, optimizer="paged_adamw_8bit"))
    for change in changes(paged, 2):
        assert json.dumps(to_json(change.apply(paged)))
