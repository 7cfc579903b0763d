"""What is not finite is never stepped on, on no rank, and is named with its rows at the next look."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config
from torch import nn
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from qwenvl_agent.config import TrainConfig
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.training.finite import GRADIENT_NORM, LOSS, MOST_IN_A_ROW, SCALE, FiniteCheck, spoiled
from qwenvl_agent.training.loader import build_sampler
from qwenvl_agent.training.optim import build_optimizer
from train import train

ROOT = Path(__file__).parent.parent
NAN, INF = float("nan"), float("inf")


def batch(name: str) -> dict:
    return {"row_ids": [name], "sources": [f"data.jsonl:{name[-1]}"]}


OPTIMIZERS = ("adamw", "paged_adamw_8bit")


@pytest.fixture(params=OPTIMIZERS)
def parts(request):
    """(a linear layer, its AdamW, the check of both)"""
    return watched(optimizer=request.param, learning_rate=0.1)


def step(model, optimizer, finite, number: int, factor: float) -> None:
    loss = model(torch.ones(2, 3)).sum() * factor
    finite.see(LOSS, loss, number, [batch(f"row{number}")])
    spoiled(loss).backward()
    finite.see(GRADIENT_NORM, nn.utils.clip_grad_norm_(model.parameters(), 1.0), number, [batch(f"row{number}")])
    optimizer.step()
    optimizer.zero_grad()


def state(model, optimizer) -> list[torch.Tensor]:
    averages = [torch.as_tensor(value).clone() for entry in optimizer.state.values() for value in entry.values()]
    return [p.detach().clone() for p in model.parameters()] + averages


@pytest.mark.parametrize("factor", [NAN, INF, -INF])
def test_neither_that_step_nor_a_later_one_changes_weights_or_averages(parts, factor):
    model, optimizer, finite = parts
    step(model, optimizer, finite, 0, 1.0)
    finite.read()
    before = state(model, optimizer)
    step(model, optimizer, finite, 1, factor)
    step(model, optimizer, finite, 2, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, state(model, optimizer), strict=True))
    with pytest.raises(ValueError, match=r"loss is -?(nan|inf) at step 2: neither .*: row1 \(data.jsonl:1\)$"):
        finite.read()


def test_a_finite_step_is_the_same_to_the_bit_with_and_without_the_check(parts, request):
    model, optimizer, finite = parts
    step(model, optimizer, finite, 0, 1.0)
    torch.manual_seed(0)
    alone = nn.Linear(3, 1)
    plain = build_optimizer(alone, TrainConfig(optimizer=request.node.callspec.params["parts"], learning_rate=0.1))
    alone(torch.ones(2, 3)).sum().backward()
    nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
    plain.step()
    assert all(torch.equal(a, b) for a, b in zip(state(model, optimizer), state(alone, plain), strict=True))


def test_an_infinite_loss_with_a_finite_gradient_is_no_step_either():
    """Cross-entropy of a token that the model holds for impossible: its gradient, p - 1, is finite."""
    logits = torch.tensor([[0.0, -INF]], requires_grad=True)
    loss = nn.functional.cross_entropy(logits, torch.tensor([1]))
    assert loss.item() == INF
    spoiled(loss).backward()
    assert not torch.isfinite(logits.grad).any()


def test_a_gradient_is_named_by_the_rows_of_its_step(parts):
    model, optimizer, finite = parts
    finite.see(LOSS, torch.tensor(1.0), 4, [batch("row1")])
    finite.see(GRADIENT_NORM, torch.tensor(INF), 4, [batch("row1"), batch("row2")])
    with pytest.raises(ValueError, match=r"gradient norm is inf at step 5: .*: row1 \(.*:1\), row2 \(.*:2\)$"):
        finite.read()


def test_a_norm_that_is_a_float_is_answered_at_once_and_the_loss_is_named(parts):
    """As DeepSpeed gives it, which has skipped the step."""
    model, optimizer, finite = parts
    finite.see(LOSS, torch.tensor(NAN), 4, [batch("row1")])
    with pytest.raises(ValueError, match=r"loss is nan at step 5: .*: row1 \(.*:1\)$"):
        finite.see(GRADIENT_NORM, INF, 4, [batch("row1"), batch("row2")])


def test_a_step_without_weight_is_named_as_that(parts):
    model, optimizer, finite = parts
    finite.see(SCALE, torch.tensor(INF), 0, [batch("row1")])
    finite.see(LOSS, torch.tensor(NAN), 0, [batch("row1")])
    with pytest.raises(ValueError, match=r"step 1 has nothing to learn: every token's weight is 0\nrow1"):
        finite.read()


def test_what_was_read_is_not_read_again(parts):
    finite = parts[2]
    finite.see(LOSS, torch.tensor(1.0), 0, [batch("row1")])
    finite.read()
    assert finite.seen == []
    finite.read()


# skipping, and spikes


def watched(**settings):
    """(a linear layer, its AdamW, the check of both as the settings say)"""
    torch.manual_seed(0)
    model, cfg = nn.Linear(3, 1), TrainConfig(**{"learning_rate": 0.1} | settings)
    optimizer = build_optimizer(model, cfg)
    return model, optimizer, FiniteCheck(Accelerator(cpu=True), optimizer, cfg)


def whole_step(model, optimizer, finite, number: int, factor: float = 1.0) -> bool:
    """A step of one micro-batch with a mean loss of about `factor`; whether it was skipped."""
    row = batch(f"row{number}") | {"loss_weight": 2.0}
    finite.begin(torch.tensor(0.5), number, [row])
    weighted_sum = (model(torch.ones(2, 3)) * 1e-6 + 1).sum() * factor
    finite.see_loss(weighted_sum * 0.5, weighted_sum, number, row).backward()
    finite.see(GRADIENT_NORM, nn.utils.clip_grad_norm_(model.parameters(), 1.0), number, [row])
    optimizer.step()
    optimizer.zero_grad()
    return finite.read()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("factor", [NAN, INF, -INF])
def test_a_skipped_step_changes_nothing_and_the_next_one_is_taken(factor, optimizer, capsys):
    model, optimizer, finite = watched(on_bad_step="skip", optimizer=optimizer)
    assert not whole_step(model, optimizer, finite, 0)
    before = state(model, optimizer)
    assert whole_step(model, optimizer, finite, 1, factor)
    assert all(torch.equal(a, b) for a, b in zip(before, state(model, optimizer), strict=True))
    said = capsys.readouterr().err
    assert (
        said
        == f"warning: loss is {factor} at step 2: the step is skipped, nothing is learned from its rows: row1 (data.jsonl:1)\n"
    )
    assert not whole_step(model, optimizer, finite, 2)
    assert not torch.equal(before[0], model.weight)


def test_too_many_skipped_steps_in_a_row_end_the_run():
    model, optimizer, finite = watched(on_bad_step="skip")
    for number in range(MOST_IN_A_ROW - 1):
        assert whole_step(model, optimizer, finite, number, NAN)
    assert not whole_step(model, optimizer, finite, 9)
    for number in range(MOST_IN_A_ROW - 1):
        assert whole_step(model, optimizer, finite, number, NAN)
    with pytest.raises(ValueError, match=r"10 steps in a row were skipped, the last because loss is nan at step 20: "):
        whole_step(model, optimizer, finite, 19, NAN)


def test_a_spike_is_named_with_what_is_usual_and_is_no_part_of_it():
    model, optimizer, finite = watched(spike_factor=3.0, on_bad_step="skip")
    assert not whole_step(model, optimizer, finite, 0, 90.0)  # nothing is known yet
    for number in range(1, 10):
        assert not whole_step(model, optimizer, finite, number)
    usual, seen = finite.usual.tolist()
    assert usual == pytest.approx(9.9, rel=1e-3) and seen == 10
    before = state(model, optimizer)
    assert not whole_step(model, optimizer, finite, 10, 29.0)
    assert whole_step(model, optimizer, finite, 11, 1000.0) and finite.usual[1] == 11
    assert not torch.equal(before[0], model.weight)
    restored = watched(spike_factor=3.0, on_bad_step="skip")
    restored[2].load_state_dict(json.loads(json.dumps(finite.state_dict())))
    assert torch.equal(restored[2].usual, finite.usual) and restored[2].in_a_row == 1


def test_a_spike_ends_a_run_that_skips_nothing():
    model, optimizer, finite = watched(spike_factor=3.0)
    for number in range(10):
        whole_step(model, optimizer, finite, number)
    before = state(model, optimizer)
    with pytest.raises(
        ValueError, match=r"mean loss is (4|3.9999)\S* at step 11, over 3 \(train.spike_factor .*: row10 \(data"
    ):
        whole_step(model, optimizer, finite, 10, 4.0)
    assert all(torch.equal(a, b) for a, b in zip(before, state(model, optimizer), strict=True))


def test_a_factor_that_makes_every_loss_a_spike_is_refused():
    with pytest.raises(ValueError, match="train.spike_factor is 1.0: losses as usual would be spikes"):
        TrainConfig(spike_factor=1.0)


# real runs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(checkpoint, dataset) of which `row3` alone has a token whose embedding is no number; the head is not tied to it."""
    directory = tmp_path_factory.mktemp("finite")
    checkpoint, dataset = save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data", 16)
    lines = dataset.read_text().splitlines()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    known = {token for line in lines for token in tokenizer.encode(line)}
    lines[3] = lines[3].replace("find it.", "find it. \\u00e9")
    dataset.write_text("\n".join(lines) + "\n")
    (rare, *_) = (token for token in tokenizer.encode("\u00e9", add_special_tokens=False) if token not in known)
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.get_input_embeddings().weight.data[rare] = NAN
    model.save_pretrained(checkpoint)
    return checkpoint, dataset


def config_of(base, directory: Path, **train):
    settings = {"max_steps": 8, "batch_size": 2, "accumulation": 1, "log_every": 100, "save_every": 2} | train
    model, data = {"lora_dropout": 0.0}, {"eval_fraction": 0.0}
    return tiny_config(directory, *base, train=settings, model=model, data=data, eval={"step_rows": 0})


BLAMED = re.compile(r"loss is nan at step (\d+): neither this step is taken nor one after it, .*: (row\S+ .*)")


def assert_names_the_row_and_saved_before(message: str, run_dir: Path) -> None:
    number, rows = BLAMED.search(message).groups()
    assert "row3#" in rows
    last = run_dir / "checkpoints" / "last"
    saved = json.loads((last / "state.json").read_text())["step"]
    assert saved < int(number) <= saved + 2
    assert all(tensor.isfinite().all() for tensor in load_file(last / "model" / "adapter_model.safetensors").values())


def step_with_row3(config) -> int:
    rows = build_rows(config.data, config.prompt).train
    steps = enumerate(build_sampler(config, rows, Accelerator(cpu=True)), start=1)
    return next(number for number, indices in steps if any("row3#" in rows[i].id for i in indices))


@pytest.fixture
def configure(base, tmp_path):
    """Function from train settings to a config in whose order row3 comes after the first checkpoint."""

    def build(**train):
        configs = (config_of(base, tmp_path, **train) for _ in range(50))
        seeded = (replace(c, data=replace(c.data, seed=seed)) for seed, c in enumerate(configs))
        of_one_rank = lambda c: replace(c, train=replace(c.train, batch_size=2))  # noqa: E731
        return next(config for config in seeded if step_with_row3(of_one_rank(config)) > 3)

    return build


def test_a_run_ends_at_its_next_look_with_the_row_and_the_checkpoint_before(configure):
    config = configure()
    with pytest.raises(ValueError) as error:
        train(config)
    assert_names_the_row_and_saved_before(str(error.value), config.run_dir)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_skips_goes_on_without_the_row_and_counts_it(configure, optimizer, capsys):
    config = configure(on_bad_step="skip", log_every=1, optimizer=optimizer)
    train(config)
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "train/skipped_step_rate" in line]
    bad = step_with_row3(config)
    num_skipped = sum(line["train/skipped_step_rate"] for line in logged)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "the step is skipped" in line]
    assert len(warnings) == num_skipped >= 1 and f"loss is nan at step {bad}: " in warnings[0]
    assert "row3#" in warnings[0] and all(math.isfinite(value) for line in lines for value in line.values())
    last = config.run_dir / "checkpoints" / "last"
    assert last.resolve().name == f"step_{config.train.max_steps:06d}"
    for name in ("model/adapter_model.safetensors", "optimizer.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(last / name).values())


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["--multi_gpu", "--use_deepspeed"])
def test_on_two_ranks_both_name_the_row_of_one(configure, tmp_path, launch):
    settings = {"zero_stage": 2} if launch == "--use_deepspeed" else {}
    config = configure(**settings, batch_size=1)
    path = save_config(config, tmp_path / "config.json")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment |= {"DS_ACCELERATOR": "cpu"} if settings else {"ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    command += [launch, str(ROOT / "train.py"), "--config", str(path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ") and "loss is nan" in line]
    assert errors, done.stderr[-3000:]
    for line in errors:
        assert_names_the_row_and_saved_before(line, config.run_dir)
