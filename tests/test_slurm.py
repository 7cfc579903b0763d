"""The batch scripts and sweeps under a real Slurm of two nodes, with real training runs of a tiny model."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import missing_daemons, running_cluster
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

from qwenvl_agent.studies.cells import load_sweep

REPOSITORY = Path(__file__).parent.parent
PATIENCE_S = 1200
"""Starting a trainer takes seconds on an idle machine, and minutes on a busy one."""
POLL_S = 2
"""Asking for the states starts a process."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.loopback,
    pytest.mark.skipif(bool(missing_daemons()), reason=f"Slurm is not installed: no {', '.join(missing_daemons())}"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        # The nodes are pretended, so are their GPUs; the trainers run on the CPU, in this environment.
        path = f"{Path(sys.executable).parent}:{cluster.environment['PATH']}"
        cluster.environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PATH": path}
        yield cluster


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(checkpoint, dataset.jsonl)"""
    directory = tmp_path_factory.mktemp("base")
    return save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data")


def lines_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps_of(run_dir: Path) -> list[int]:
    return [line["step"] for line in lines_of(run_dir) if "train/loss" in line]


def test_two_nodes_train_save_before_the_limit_and_go_on_after_a_requeue(cluster, base, tmp_path):
    """Two ranks on two nodes; USR1, as at the time limit; the same job resumes; a dependent job evaluates the end."""
    config = tiny_config(tmp_path, *base, train={"max_steps": 40, "batch_size": 1, "save_every": 1000})
    path, run_dir, log = save_config(config, tmp_path / "config.json"), config.run_dir, tmp_path / "train.log"
    job = cluster.submit("--nodes=2", f"--output={log}", "scripts/slurm/train.sbatch", path, "train.seed=3")
    evaluation = cluster.submit(
        f"--dependency=afterok:{job}",
        f"--output={tmp_path / 'eval.log'}",
        *("scripts/slurm/eval.sbatch", "--run", run_dir, "--suite", "steps", "--rows", "2"),
    )
    cluster.wait_for(lambda: (run_dir / "metrics.jsonl").exists() and steps_of(run_dir), PATIENCE_S, log)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_for(lambda: cluster.job(job)["Restarts"] == "1", PATIENCE_S, log)
    assert cluster.job(evaluation)["Reason"] == "Dependency"
    saved = json.loads((run_dir / "checkpoints" / "last" / "state.json").read_text())
    assert 0 < saved["step"] == steps_of(run_dir)[-1] < 40
    assert saved["sampler"]["rows_per_step"] == 4  # 1 row, 2 micro-batches, 2 ranks
    ranks = [json.loads((run_dir / "checkpoints" / "last" / f"rank_{i}.json").read_text()) for i in range(2)]
    assert ranks[0]["random"] != ranks[1]["random"]

    assert cluster.wait_for_job(job, PATIENCE_S, log)["JobState"] == "COMPLETED", log.read_text()
    text = log.read_text()
    assert "start 1, 2 ranks on n[1-2]" in text and "start 2, 2 ranks on n[1-2]" in text
    assert f"resuming {(run_dir / 'checkpoints').resolve()}/step_{saved['step']:06d}" in text
    assert steps_of(run_dir) == list(range(1, 41)) and (run_dir / "exit_status").read_text() == "0\n"
    assert json.loads((run_dir / "config.json").read_text())["train"]["seed"] == 3

    assert cluster.wait_for_job(evaluation, PATIENCE_S)["JobState"] == "COMPLETED", (tmp_path / "eval.log").read_text()
    assert json.loads((run_dir / "eval" / "steps" / "metrics.json").read_text())["about"]["num_rows"] == 2


def hyper_parameters(run_dir: Path) -> dict:
    """As TensorBoard's table shows them."""
    board = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    return dict(HParamsPluginData.FromString(content).session_start_info.hparams)


def test_a_sweep_is_an_array_and_its_failed_cell_is_submitted_again_alone(cluster, base, tmp_path):
    config = tiny_config(tmp_path, *base, train={"max_steps": 2})
    late = tmp_path / "late" / "dataset.jsonl"
    broken = {"data.sources": [{"path": str(late), "kind": "chat"}]}
    cells = {"good": {"train.learning_rate": 1e-3}, "broken": {"train.learning_rate": 2e-3} | broken}
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"config": str(save_config(config, tmp_path / "base.json")), "cells": cells}))
    sweep = load_sweep(path)
    logs = sweep.directory / "logs"

    def run(*options) -> str:
        return cluster.run(sys.executable, "scripts/sweep.py", str(path), *options, cwd=REPOSITORY)

    def states() -> list[str]:
        return [row["state"] for row in json.loads(run("--status", "--json"))]

    assert states() == ["missing", "missing"]
    assert "--array=0-1%1" in run("--submit", "--limit", "1")
    cluster.wait_for(lambda: states() == ["running", "queued"], PATIENCE_S, every=POLL_S)
    assert "nothing to submit: 2 cells" in run("--submit")
    cluster.wait_for(lambda: states() == ["done", "failed"], 2 * PATIENCE_S, every=POLL_S)
    (log,) = logs.glob("*_1.log")
    assert f"error: {late}: there is no such file" in log.read_text() and str(log) in run("--status")

    save_dataset(late.parent)
    assert "--array=0-0%4" in run("--submit")
    cluster.wait_for(lambda: states() == ["done", "done"], PATIENCE_S, every=POLL_S)
    assert [len(steps_of(cell.config.run_dir)) for cell in sweep.cells] == [2, 2]
    assert "2 cells: 2 done" in run("--collect") and (sweep.directory / "metric.png").exists()
    rates = [hyper_parameters(cell.config.run_dir)["train.learning_rate"].number_value for cell in sweep.cells]
    assert rates == [1e-3, 2e-3]


def test_an_ablation_is_trained_evaluated_and_reported(cluster, tmp_path):
    """Two arms, two training seeds: an array on both nodes, then a job that plays the missions and writes the report."""
    data, world = tmp_path / "safari", {"max_turns": 3, "tile_px": 16}
    record = ["--episodes", "6", "--out", str(data), "--rules", json.dumps({"tile_px": 16})]
    config = {
        "name": "base",
        "runs_dir": str(tmp_path / "runs"),
        "model": {"path": "tiny", "method": "full", "dtype": "float32"},
        "data": {"sources": [{"path": str(data)}], "eval_fraction": 0.4},
        "vision": {"max_tokens_per_image": 100, "tiles": 10},
        "train": {"max_steps": 2, "batch_size": 2, "log_every": 1},
        "eval": {"suite": "none", "world": {"tile_px": 16}, "max_new_tokens": 16},
    }
    (tmp_path / "base.json").write_text(json.dumps(config))
    study = {
        "question": "Does it run under Slurm?",
        "config": str(tmp_path / "base.json"),
        "baseline": "native",
        "arms": {name: {"prompt.format": name} for name in ("native", "plain")},
        "seeds": [0, 1],
        "missions": {"suite": "safari", "episodes": 3, "world": world},
        "rows": 3,
        "prepare": {str(data / "manifest.json"): [sys.executable, "scripts/generate_oracle.py", *record]},
    }
    path, out = tmp_path / "study.json", tmp_path / "report"
    path.write_text(json.dumps(study))
    command = [sys.executable, "scripts/ablate.py", str(path)]
    said = cluster.run(*command, "--submit", "--limit", "2", "--out", str(out), cwd=REPOSITORY)
    training, evaluation = re.findall(r"^job (\d+): ", said, re.MULTILINE)
    assert cluster.job(evaluation)["Dependency"].startswith("afterany:" + training)
    log = tmp_path / "runs" / "ablation_study" / "logs" / f"evaluate_{evaluation}.log"
    assert cluster.wait_for_job(evaluation, PATIENCE_S, log)["JobState"] == "COMPLETED", log.read_text()
    runs = sorted((tmp_path / "runs" / "ablation_study").glob("*_seed?"))
    assert [run.name for run in runs] == ["native_seed0", "native_seed1", "plain_seed0", "plain_seed1"]
    assert [steps_of(run) for run in runs] == [[1, 2]] * 4
    for run in runs:
        played = json.loads((run / "eval" / "missions" / "metrics.json").read_text())["about"]
        assert played["seeds"]["count"] == 3 and played["world"]["max_turns"] == 3
    rows = (out / "cells.csv").read_text().splitlines()
    assert len(rows) == 5 and "Does it run under Slurm?" in (out / "report.md").read_text()
    assert "nothing to submit" in cluster.run(*command, "--submit", cwd=REPOSITORY)


def test_sbatchs_refusal_is_one_message(cluster, base, tmp_path):
    config = save_config(tiny_config(tmp_path, *base), tmp_path / "base.json")
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"config": str(config)}))
    command = [sys.executable, "scripts/sweep.py", str(path), "--submit", "--sbatch=--partition=none"]
    done = subprocess.run(command, cwd=REPOSITORY, env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 2 and "error: sbatch refused, nothing was submitted" in done.stderr
    assert "invalid partition" in done.stderr and not os.listdir(load_sweep(path).directory / "submissions")


def test_a_port_in_use_is_named(cluster, base, tmp_path):
    config, log = save_config(tiny_config(tmp_path, *base), tmp_path / "config.json"), tmp_path / "log"
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        export = f"--export=ALL,MASTER_PORT={port}"
        job = cluster.submit(export, f"--output={log}", "scripts/slurm/train.sbatch", config)
        assert cluster.wait_for_job(job, PATIENCE_S, log)["ExitCode"] == "2:0"
    # Which node is free depends on the tests before.
    assert re.search(rf"error: MASTER_PORT {port} is in use on n[12]\b", log.read_text())
