"""A step that neither logs nor saves reads nothing from the device: a GPU computes on while the host goes ahead."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from host_reads import HostReads
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

from train import train

WORKER = Path(__file__).parent / "host_reads.py"
RUNS = {
    "full": {"model": {"method": "full", "train_vision": True}},
    "sdpa": {"model": {"attention": "sdpa", "method": "full", "train_vision": True}},
    "lora, accumulation 4": {"model": {"lora_dropout": 0.1}, "train": {"batch_size": 1, "accumulation": 4}},
    "packs, recomputed": {
        "model": {"attention": "sdpa", "gradient_checkpointing": True},
        "train": {"pack_tokens": 300},
    },
}
READ_AT_A_LOG_LINE = {"qwenvl_agent/training/finite.py _on_host": 1, "qwenvl_agent/training/metrics.py read": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("reads")
    return save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data")


def config_of(base, directory: Path, groups: dict):
    """Five steps of which the last logs; their batches are made in a process of its own."""
    settings = {"max_steps": 5, "log_every": 100, "save_every": 100} | groups.get("train", {})
    return tiny_config(directory, *base, **groups | {"train": settings, "data": {"num_workers": 1}})


def ours(reads: Counter) -> dict[str, int]:
    return {name: num for name, num in reads.items() if name.startswith(("qwenvl_agent", "train.py"))}


@pytest.mark.parametrize("run", RUNS)
def test_a_step_that_does_not_log_reads_nothing(base, tmp_path, run):
    with HostReads() as reads:
        train(config_of(base, tmp_path, RUNS[run]))
    assert 2 not in reads.by_step and 3 not in reads.by_step, "neither here nor in another package"
    assert reads.by_step[1] == READ_AT_A_LOG_LINE  # the first step of a process shows a line


def test_an_8_bit_optimizer_is_asked_once_a_step_whether_to_take_it(base, tmp_path):
    """bitsandbytes itself waits for a GPU after each parameter."""
    with HostReads() as reads:
        train(config_of(base, tmp_path, {"model": {"method": "full"}, "train": {"optimizer": "paged_adamw_8bit"}}))
    assert reads.by_step[2] == reads.by_step[3] == {"qwenvl_agent/training/paged_adamw.py step": 1}


LOOKS = {
    "a number": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "an answer": lambda x: bool((x > 0).all()),
    "a list": lambda x: x.tolist(),
    "an array": lambda x: x.numpy(),
    "a copy": lambda x: x.cpu(),
    "a mask": lambda x: x[x > 1],
    "a mask that is written": lambda x: x.index_put((x > 1,), torch.zeros(())),
    "where": lambda x: torch.where(x > 1),
    "unique": lambda x: torch.unique(x),
    "repeated by values": lambda x: torch.repeat_interleave(x, x.long()),
}


@pytest.mark.parametrize("look", LOOKS)
def test_the_count_knows_this_way_to_look(look):
    with HostReads() as reads:
        LOOKS[look](torch.arange(3.0))
    assert reads.by_step[None].total() >= 1


def test_what_stays_on_the_device_is_not_counted():
    with HostReads() as reads:
        x = torch.arange(4.0)
        torch.where(x > 1, x, 0).sum() + x.index_select(0, torch.tensor([2, 3])).masked_fill_(x[:2] > 0, 1.0).mean()
    assert reads.by_step == {}


RANKS = {"ddp": (["--multi_gpu"], {}), "zero2": (["--use_deepspeed"], {"zero_stage": 2})}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS)
def test_two_ranks_read_nothing_either(base, tmp_path, ranks):
    """But the answer whether a rank was asked to stop, from the host's own memory; and DeepSpeed, which looks at each norm."""
    launch, settings = RANKS[ranks]
    config = config_of(base, tmp_path, {"model": {"lora_dropout": 0.0}, "train": settings})
    path = save_config(config, tmp_path / "config.json")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment |= {"DS_ACCELERATOR": "cpu"} if settings else {"ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    command += [*launch, str(WORKER), str(path), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        by_step = json.loads((tmp_path / "out" / f"rank_{rank}.json").read_text())
        assert ours(by_step["2"]) == ours(by_step["3"]) == {"qwenvl_agent/training/stop.py is_agreed": 1}
        others = {name for name in by_step["2"] if not ours({name: 1})}
        packages = {name.split("/")[0] for name in others}
        assert packages <= ({"deepspeed", "accelerate"} if settings else set()), others
