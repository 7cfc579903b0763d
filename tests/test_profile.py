"""A real short run, profiled."""

import gzip
import json
import re

import pytest
import torch
from tiny_run import save_dataset, save_tiny_checkpoint, tiny_config

import train
from qwenvl_agent.training.profile import PHASES, matmul_flops


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("profiled")
    checkpoint, data = save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data")
    config = tiny_config(directory, checkpoint, data, train={"max_steps": 7, "log_every": 1}, profile={"steps": 2})
    train.train(config)
    return config.run_dir


def table(summary: str) -> dict[str, tuple[float, float]]:
    rows = re.findall(r"\| ([\w ]+) \| (-?[\d.]+) \| (-?[\d.]+)% \|", summary)
    return {name: (float(ms), float(share)) for name, ms, share in rows}


def test_the_phases_make_up_the_step(run_dir):
    summary = (run_dir / "profile" / "summary.md").read_text()
    phases = table(summary)
    assert list(phases) == ["data wait", *PHASES, "everything else"]
    assert all(phases[name][0] > 0 for name in PHASES)
    assert sum(share for _, share in phases.values()) == pytest.approx(100, abs=0.5)
    seconds = float(re.search(r"2 steps of ([\d.]+) s", summary)[1])
    assert sum(ms for ms, _ in phases.values()) == pytest.approx(1e3 * seconds, rel=0.02)
    assert phases["everything else"][0] < 0.3 * 1e3 * seconds  # what is named is most of it


def test_the_trace_holds_the_phases_of_two_steps_of_two_micro_batches(run_dir):
    with gzip.open(run_dir / "profile" / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert names.count("language forward") == names.count("backward") == 4
    assert names.count("clip and optimizer") == 2


def test_profiling_changes_no_step_and_is_off_by_default(run_dir, tmp_path):
    base = run_dir.parent.parent
    config = tiny_config(
        tmp_path, base / "base", base / "data" / "dataset.jsonl", train={"max_steps": 7, "log_every": 1}
    )
    train.train(config)
    assert not (config.run_dir / "profile").exists()

    def losses(directory):
        return [json.loads(line).get("train/loss") for line in (directory / "metrics.jsonl").open()]

    assert losses(config.run_dir) == losses(run_dir)


def test_the_rate_is_that_of_a_product():
    assert 1e8 < matmul_flops(torch.device("cpu"), torch.float32, repeats=2) < 1e14
