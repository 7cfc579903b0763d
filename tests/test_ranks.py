"""The gradient of an optimizer step does not depend on how its rows are shared out."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank_worker
import torch
from safetensors.torch import load_file
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

from qwenvl_agent.config import load_config

ROOT = Path(__file__).parent.parent
WORKER = ROOT / "tests" / "rank_worker.py"
# Without a GPU, `accelerate launch` starts two ranks that know of each other only this way.
TWO_RANKS = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Function from a name and train settings to the output folder of one in-process rank, and the config's path."""
    directory = tmp_path_factory.mktemp("ranks")
    checkpoint, dataset = save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data", 10)

    def write(name, **train):
        model = {"lora_dropout": 0.0}
        config = tiny_config(directory, checkpoint, dataset, model=model, train=train | {"weight_thought": 0.5})
        return save_config(config, directory / f"{name}.json"), directory / name

    return write


@pytest.fixture(scope="module")
def expected(run):
    """Gradients of 4 rows as one micro-batch on one rank."""
    config, out = run("4x1", batch_size=4, accumulation=1)
    rank_worker.main(str(config), str(out))
    return out


def assert_same_gradient(out: Path, expected: Path) -> None:
    gradients, wanted = (load_file(folder / "rank_0.safetensors") for folder in (out, expected))
    assert gradients.keys() == wanted.keys() and len(wanted) == 28  # 2 layers x 7 projections x (A, B)
    for name, gradient in wanted.items():
        assert gradient.any(), name
        error = (gradients[name] - gradient).norm() / gradient.norm()
        assert error < 1e-5, f"{name}: relative error {error}"


def test_accumulation_changes_nothing(run, expected):
    config, out = run("1x4", batch_size=1, accumulation=4)
    rank_worker.main(str(config), str(out))
    assert_same_gradient(out, expected)
    ours, wanted = (json.loads((folder / "rank_0.json").read_text()) for folder in (out, expected))
    assert sorted(ours["rows"]) == sorted(wanted["rows"])
    torch.testing.assert_close(ours["loss"], wanted["loss"])


@pytest.mark.loopback
def test_two_ranks_with_unequal_token_counts_change_nothing(run, expected):
    config, out = run("2ranks", batch_size=1, accumulation=2)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*TWO_RANKS, "--main_process_port", "0", str(WORKER), str(config), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((out / f"rank_{rank}.json").read_text()) for rank in range(2)]
    assert [(r["world_size"], r["backend"], r["rank"]) for r in ranks] == [(2, "gloo", 0), (2, "gloo", 1)]
    assert ranks[0]["num_tokens"] != ranks[1]["num_tokens"]
    wanted = json.loads((expected / "rank_0.json").read_text())
    assert sorted(ranks[0]["rows"] + ranks[1]["rows"]) == sorted(wanted["rows"])
    assert_same_gradient(out, expected)
    first, second = (load_file(out / f"rank_{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_two_ranks_stop_together_after_the_next_step(run, tmp_path):
    """Though the run logs and saves nothing in between, and only the folder of the run knows of it."""
    config_path, _ = run("stop", max_steps=100_000, log_every=100_000, save_every=100_000)
    run_dir = load_config(config_path).run_dir
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*TWO_RANKS, "--main_process_port", "0", str(ROOT / "train.py"), "--config", str(config_path)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        while "step 1/" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.1)
        (run_dir / "STOP").touch()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    last = run_dir / "checkpoints" / "last"
    assert {"rank_0.json", "rank_1.json"} <= {path.name for path in last.iterdir()}
    assert json.loads((last / "state.json").read_text())["step"] < 100
    assert "--resume goes on" in (tmp_path / "log").read_text()
