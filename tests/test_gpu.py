"""On a GPU: layers, losses and steps are those of a CPU. `make gpu-check` runs this; without a GPU the same tests compare a
CPU with itself, which shows only that they run: python -m pytest -m gpu tests/test_gpu.py"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_packing import ROWS
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config
from torch import nn

import train
from qwenvl_agent.config import Config
from qwenvl_agent.data.collator import build_collator
from qwenvl_agent.inference.decoding import decode
from qwenvl_agent.model.build import build_model, build_processor
from qwenvl_agent.model.call import model_inputs
from qwenvl_agent.model.kernels import Head, PatchProjection
from qwenvl_agent.training.loader import to_device
from qwenvl_agent.training.loss import token_losses
from qwenvl_agent.training.optim import build_optimizer
from qwenvl_agent.training.state import load_optimizer_tensors, optimizer_tensors

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[1]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
QLORA = {"method": "qlora", "dtype": "bfloat16", "autocast": True, "lora_dropout": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gpu")
    return save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data")


@pytest.fixture
def configure(base, tmp_path):
    """Function from config groups to a Config of this test's folder, with sdpa."""

    def build(model: dict | None = None, **groups) -> Config:
        return tiny_config(tmp_path, *base, model={"attention": "sdpa"} | (model or {}), **groups)

    return build


def assert_near(ours: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    ours, expected = ours.detach().double().cpu(), expected.detach().double().cpu()
    error = (ours - expected).norm() / expected.norm().clamp_min(1e-12)
    assert error <= share, f"{error:.2e} of its norm off, {share} is allowed"


def losses_of(config: Config) -> dict[int, float]:
    lines = map(json.loads, (config.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def trained(config: Config, **how) -> dict[int, float]:
    train.train(config, **how)
    return losses_of(config)


# layers


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_heads_losses_and_gradients_are_those_of_whole_logits_in_float64(dtype, share, trains):
    torch.manual_seed(0)
    head = nn.Linear(64, 5003, bias=False, device=DEVICE, dtype=dtype).requires_grad_(trains)
    hidden = torch.randn(1, 777, 64, device=DEVICE, dtype=dtype, requires_grad=True)
    targets, factors = torch.randint(5003, (777,), device=DEVICE), torch.rand(777, device=DEVICE)
    of = [hidden, *([head.weight] if trains else [])]
    whole = nn.functional.cross_entropy(hidden[0].double() @ head.weight.double().T, targets, reduction="none")
    expected = [whole, *torch.autograd.grad((whole * factors).sum(), of)]
    head.__class__, head.targets, head.places = Head, targets, torch.arange(777, device=DEVICE)
    losses = head(hidden)
    for found, wanted in zip([losses, *torch.autograd.grad((losses * factors).sum(), of)], expected, strict=True):
        assert_near(found, wanted, share)


def test_patches_are_projected_as_a_convolution_does():
    projection = nn.Conv3d(3, 96, (2, 16, 16), (2, 16, 16)).to(DEVICE, torch.float64)
    patches = torch.randn(300, 3, 2, 16, 16, device=DEVICE, dtype=torch.float64)
    expected = projection(patches).flatten(1)
    projection.float().__class__ = PatchProjection
    assert_near(projection(patches.float()), expected, 1e-5)


def test_a_gpu_unpacks_what_a_cpu_packed():
    from bitsandbytes import functional

    weight = torch.randn(512, 256, dtype=torch.bfloat16)
    unpacked = []
    for device in ("cpu", DEVICE):
        packed, state = functional.quantize_4bit(weight.to(device), quant_type="nf4", compress_statistics=True)
        unpacked.append(functional.dequantize_4bit(packed, state))
    assert_near(unpacked[1], weight, 0.12)
    assert_near(unpacked[1], unpacked[0], 0.02)


# losses and gradients


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("half", "shares"), [(False, (1e-4, 1e-3)), (True, (2e-2, 0.15))])
def test_packs_have_the_losses_and_gradients_of_padded_rows(configure, method, half, shares):
    """FlexAttention on a GPU, in float32 and under autocast, where norms that train make float32 of queries."""
    dtype = "bfloat16" if half else "float32"
    precision = {"autocast": half, "dtype": dtype, "gradient_checkpointing": False, "lora_dropout": 0.0}
    config = configure(model={"method": method, **precision})
    collator = build_collator(build_processor(config.model, config.vision), config)
    model = build_model(config.model, DEVICE).train()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    found = []
    for pack_tokens in (0, 4096):
        batch = to_device(collator(ROWS, pack_tokens=pack_tokens), DEVICE)
        model.zero_grad()
        tokens = token_losses(model, batch)
        tokens.weighted_sum.backward()
        row_of = batch["row_index"].flatten()[batch["supervised"] + 1]
        by_row = torch.zeros(len(ROWS), device=DEVICE).index_add_(0, row_of, tokens.losses.detach()).sort().values
        found.append((by_row, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    for padded, packed, share in zip(*found, shares, strict=True):
        assert_near(packed, padded, share)


# steps


def test_steps_are_those_of_a_cpu(configure, tmp_path):
    """From the same checkpoint, because each device draws adapters of its own."""
    config = configure(model={"lora_dropout": 0.0}, train={"max_steps": 4, "save_every": 1, "keep_checkpoints": 9})
    path = save_config(config, tmp_path / "config.json")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "train.py", "--config", str(path)]
    subprocess.run([*command, "--set", "train.max_steps=1"], cwd=ROOT, env=environment, check=True)
    whole = trained(config, resume=True)
    (config.run_dir).rename(config.run_dir.with_name("on_the_gpu"))
    subprocess.run([*command, "--set", "train.max_steps=1"], cwd=ROOT, env=environment, check=True)
    subprocess.run([*command, "--resume"], cwd=ROOT, env=environment, check=True)
    on_cpu = losses_of(config)
    assert whole.keys() == on_cpu.keys() == {1, 2, 3, 4}
    assert list(whole.values()) == pytest.approx(list(on_cpu.values()), rel=2e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_a_run_resumes(configure, method, optimizer):
    """Within rounding: a GPU's flash attention adds up gradients in any order."""
    model = QLORA | {"method": method, "lora_rank": 64}
    settings = {"max_steps": 4, "save_every": 2, "keep_checkpoints": 4, "optimizer": optimizer}
    whole, part = (configure(model=model, name=name, train=settings) for name in ("whole", "part"))
    trained(replace(part, train=replace(part.train, max_steps=2)))
    expected, found = trained(whole), trained(part, resume=True)
    assert [found[step] for step in (3, 4)] == pytest.approx([expected[step] for step in (3, 4)], rel=5e-3)


CHANGES = {
    "computed again": {"gradient_checkpointing": True},
    "compiled": {"compile": True},
    "whole weights": {"method": "lora"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_saves_time_or_memory_changes_no_loss(configure, change):
    """4-bit weights are others, by as much as their rounding."""
    settings = QLORA | {"gradient_checkpointing": False}
    plain = trained(configure(model=settings, name="plain", train={"max_steps": 3}))
    other = trained(configure(model=settings | CHANGES[change], name="other", train={"max_steps": 3}))
    assert list(other.values()) == pytest.approx(list(plain.values()), rel=0.2 if change == "whole weights" else 2e-2)


def test_pages_are_pages_again_after_a_checkpoint(configure):
    """Where a parameter is large enough; on a CPU nothing is."""
    large = nn.Linear(512, 512).to(DEVICE)
    config = replace(configure().train, optimizer="paged_adamw_8bit")
    states: list[dict] = []
    tensors: dict[str, torch.Tensor] = {}
    for _ in range(2):
        optimizer = build_optimizer(large, config)
        load_optimizer_tensors(large, optimizer, tensors)
        large(torch.ones(2, 512, device=DEVICE)).square().mean().backward()
        optimizer.step()
        tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(large, optimizer).items()}
        states.append(optimizer.state[large.weight])
    assert all(getattr(state["state1"], "is_paged", False) == (DEVICE.type == "cuda") for state in states)
    assert [state["step"] for state in states] == [1, 2]


# answers


def test_a_batch_writes_what_generate_writes(configure):
    config = configure(model={"gradient_checkpointing": False})
    collator = build_collator(build_processor(config.model, config.vision), config)
    model = build_model(config.model, DEVICE).requires_grad_(False)

    def prompts(rows) -> dict:
        batch = collator.encode_prompt([row.request for row in rows])
        return model_inputs({k: v.to(DEVICE) for k, v in batch.items() if isinstance(v, torch.Tensor)})

    rows = ROWS[:5]
    together = decode(model, prompts(rows), end_id=2, max_new_tokens=12)
    for ids, row in zip(together, rows, strict=True):
        alone = prompts([row])
        stock = model.generate(**alone, max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0)
        assert stock[0, alone["input_ids"].shape[1] :].tolist()[: len(ids)] == ids
