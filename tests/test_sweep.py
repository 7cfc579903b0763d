import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from qwenvl_agent.cli import sweep as script
from qwenvl_agent.config import load_config, to_json
from qwenvl_agent.studies.cells import freeze, frozen_path, load_sweep
from qwenvl_agent.studies.local import share_gpus
from qwenvl_agent.studies.progress import read_progress, state_of
from qwenvl_agent.studies.slurm import log_path

REPOSITORY = Path(__file__).parent.parent
GRID = {"train.learning_rate": [1e-4, 2e-4], "train.seed": [0, 1]}


@pytest.fixture
def write(tmp_path):
    """Function from a sweep's keys to the path of its file; the base config has 8 steps and lies beside it."""
    values = {"name": "base", "runs_dir": str(tmp_path / "runs"), "model": {"path": "tiny"}, "train": {"max_steps": 8}}
    base = tmp_path / "base.json"
    base.write_text(json.dumps(values))

    def write_sweep(**keys):
        path = tmp_path / "study.json"
        path.write_text(json.dumps({"config": str(base)} | keys))
        return path

    return write_sweep


def write_run(run_dir, config, *, lines=(), saved_step=0, exit_status=None):
    """The files that train.py and the batch script leave."""
    last = run_dir / "checkpoints" / "last"
    last.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps(to_json(config)))
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if saved_step:
        sampler = {"num_rows": 10, "rows_per_step": 4}
        (last / "state.json").write_text(json.dumps({"step": saved_step, "best": {}, "sampler": sampler}))
    if exit_status is not None:
        (run_dir / "exit_status").write_text(f"{exit_status}\n")


# cells


def test_every_entry_of_cells_meets_every_point_of_the_grid(write):
    cells = [{"model.lora_rank": 8, "model.lora_alpha": 16}, {"model.lora_rank": 32, "model.lora_alpha": 64}]
    sweep = load_sweep(write(set={"train.batch_size": 1}, cells=cells, grid={"train.learning_rate": [1e-4, 2e-4]}))
    assert [cell.name for cell in sweep.cells] == [
        "lora_rank=8,lora_alpha=16,learning_rate=0.0001",
        "lora_rank=8,lora_alpha=16,learning_rate=0.0002",
        "lora_rank=32,lora_alpha=64,learning_rate=0.0001",
        "lora_rank=32,lora_alpha=64,learning_rate=0.0002",
    ]
    last = sweep.cells[-1].config
    assert (last.model.lora_rank, last.model.lora_alpha, last.train.learning_rate) == (32, 64, 2e-4)
    assert (last.train.batch_size, last.train.max_steps) == (1, 8)
    assert last.run_dir == sweep.directory / sweep.cells[-1].name and sweep.directory.name == "study"
    assert sweep.swept_keys == ["model.lora_rank", "model.lora_alpha", "train.learning_rate"]


def test_names_are_folders_and_differ(write):
    named = load_sweep(write(cells={"no thought": {"prompt.format": "no_thought"}, "5": {}}))
    assert [cell.name for cell in named.cells] == ["no_thought-936188", "5"]
    assert named.cells[1].config.name == "5"  # not the number
    both = load_sweep(write(grid={"train.seed": [0], "data.seed": [1]}))
    assert both.cells[0].name == "train.seed=0,data.seed=1"
    sources = [[{"path": f"../{name}.jsonl"}] for name in "ab"]
    assert len({cell.name for cell in load_sweep(write(grid={"data.sources": sources})).cells}) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"grid": {"train.lr": [1]}}, "study.json: cell lr=1: unknown key 'train.lr'.*here it is train.learning_rate"),
        ({"grid": {"eval.world.widht": [20]}}, "cell widht=20: eval.world: unknown key 'safari.widht'"),
        ({"gird": {"train.seed": [1]}}, "study.json: unknown key 'gird'.*nearest known key: 'grid'"),
        ({"grid": {"train.seed": 1}}, "grid: train.seed is 1, which spans nothing; write a list"),
        ({"grid": {"train.seed": ["one"]}}, "cell seed=one: train.seed is 'one', which is not of type int"),
        ({"cells": []}, "cells is empty"),
        ({"cells": ["a"]}, "an entry of cells is 'a', which sets nothing"),
        ({"grid": {"train.seed": [1, 1]}}, "cell seed=1 is there twice"),
        ({"set": {"train.seed": 1}, "grid": {"train.seed": [1, 2]}}, "train.seed is set in two of"),
        ({"grid": {"name": ["a", "b"]}}, "name is set: the sweep itself gives each run its place"),
        ({"goal": "low"}, "goal is 'low'.*use one of min, max"),
        ({"config": "no/such.json"}, "study.json: no/such.json: No such file"),
    ],
)
def test_a_wrong_sweep_is_one_message(write, capsys, keys, message):
    assert script.main([str(write(**keys))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        load_sweep(write(**keys))


def test_what_is_printed_is_what_runs(write, capsys):
    """The dry run's commands and the frozen configs, which --submit and --local start, give the same config."""
    path = write(grid={"train.learning_rate": [1e-4, 2e-4], "data.sources": [[{"path": "a b.jsonl"}]]}, cells={"7": {}})
    assert script.main([str(path)]) == 0
    captured = capsys.readouterr()
    commands = [shlex.split(line) for line in captured.out.splitlines()]
    assert "2 cells: 2 missing; to run: 2. Nothing was started" in captured.err
    sweep = load_sweep(path)
    assert not sweep.directory.exists()
    freeze(sweep, sweep.cells)
    for command, cell in zip(commands, sweep.cells, strict=True):
        assert command[:4] == ["accelerate", "launch", "train.py", "--config"] and command[-1] == "--resume"
        settings = [after for option, after in zip(command, command[1:], strict=False) if option == "--set"]
        assert load_config(command[4], settings) == load_config(frozen_path(sweep, cell)) == cell.config


def test_cells_that_were_started_with_other_settings_are_not_mixed_in(write, tmp_path):
    sweep = load_sweep(write(grid=GRID))
    freeze(sweep, sweep.cells[:1])
    base = json.loads((tmp_path / "base.json").read_text())
    (tmp_path / "base.json").write_text(json.dumps(base | {"train": {"max_steps": 9}}))
    with pytest.raises(ValueError, match=r"seed=0.json was started with other settings \(train.max_steps\)"):
        freeze(load_sweep(tmp_path / "study.json"), sweep.cells[1:])


@pytest.mark.parametrize(
    "path",
    sorted(p for p in (REPOSITORY / "configs" / "sweeps").glob("*.json") if p.name != "schema.json"),
    ids=lambda path: path.stem,
)
def test_shipped_sweeps_load(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    sweep = load_sweep(path)
    assert len(sweep.cells) > 1 and len(sweep.swept_keys) > 1


# states


@pytest.mark.parametrize(
    ("run", "job", "state"),
    [
        (None, None, "missing"),
        (None, "queued", "queued"),
        ({}, "running", "running"),
        ({}, None, "stopped"),
        ({"saved_step": 3, "exit_status": 0}, None, "stopped"),
        ({"saved_step": 3, "exit_status": 1}, None, "failed"),
        ({"saved_step": 3, "exit_status": 1}, "queued", "queued"),
        ({"saved_step": 8, "exit_status": 0}, "running", "done"),
    ],
)
def test_states(write, run, job, state):
    config = load_sweep(write(grid=GRID)).cells[0].config
    if run is not None:
        write_run(config.run_dir, config, **run)
    assert state_of(read_progress(config.run_dir), job) == state


def test_a_run_that_was_killed_in_its_last_evaluation_is_not_done(write):
    config = load_sweep(write(grid=GRID)).cells[0].config
    write_run(config.run_dir, config, saved_step=8)
    last = config.run_dir / "checkpoints" / "last"
    saved = json.loads((last / "state.json").read_text())
    (last / "state.json").write_text(json.dumps(saved | {"evaluation_due": True}))
    assert state_of(read_progress(config.run_dir)) == "stopped"
    (last / "evaluation.json").write_text("{}")
    assert state_of(read_progress(config.run_dir)) == "done"


def test_a_run_in_epochs_is_done_after_its_last_row(write):
    """10 rows, 4 a step, 1.5 epochs: 15 rows, 4 steps."""
    config = load_sweep(write(set={"train.epochs": 1.5, "train.max_steps": 0}, grid=GRID)).cells[0].config
    write_run(config.run_dir, config, saved_step=3)
    progress = read_progress(config.run_dir)
    assert (progress.max_steps, progress.is_done) == (4, False)


def test_a_line_that_is_being_written_does_not_count(write):
    config = load_sweep(write(grid=GRID)).cells[0].config
    write_run(config.run_dir, config, lines=[{"step": 1, "train/loss": 3.0}], saved_step=1)
    with open(config.run_dir / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "train/lo')
    progress = read_progress(config.run_dir)
    assert (progress.step, progress.loss) == (1, 3.0)


def write_results(sweep):
    """Cells 0 and 1 are done, 2 has failed, 3 is missing; the metric of cell i is best at step 4."""
    for i, cell in enumerate(sweep.cells[:3]):
        lines = [{"step": s, "train/loss": 3.0 - s / 10 + i} for s in range(1, 9)]
        lines += [{"step": s, sweep.metric: y + i, "eval/other": s} for s, y in ((4, 1.0), (8, 2.0))]
        is_done = i < 2
        write_run(
            cell.config.run_dir,
            cell.config,
            lines=lines if is_done else lines[:2],
            saved_step=8 if is_done else 0,
            exit_status=0 if is_done else 1,
        )


def test_status_and_what_would_be_started(write, capsys):
    path = write(grid=GRID)
    sweep = load_sweep(path)
    write_results(sweep)
    assert script.main([str(path), "--status", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows] == ["done", "done", "failed", "missing"]
    assert rows[1] == {
        "cell": "learning_rate=0.0001,seed=1",
        "train.learning_rate": 1e-4,
        "train.seed": 1,
        "state": "done",
        "step": 8,
        "max_steps": 8,
        "loss": pytest.approx(3.2),
        "eval/token_loss/all": 2.0,
        "best_step": 4,
        "eval/other": 4,
    }
    assert script.main([str(path), "--status"]) == 0
    text = capsys.readouterr().out
    assert "4 cells: 2 done, 1 failed, 1 missing" in text and "learning_rate=0.0002,seed=0 failed: " in text
    assert script.main([str(path)]) == 0
    assert [line.count("seed=0") for line in capsys.readouterr().out.splitlines()] == [2, 0]  # the failed, the missing
    assert script.main([str(path), "--cells", "learning_rate=0.0002,seed=1"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert script.main([str(path), "--cells", sweep.cells[0].name]) == 2
    assert "is done: it would be trained twice" in capsys.readouterr().err
    assert script.main([str(path), "--cells", "seed=7"]) == 2
    assert "'seed=7' is no cell" in capsys.readouterr().err


def test_collected_results(write, capsys):
    path = write(grid=GRID)
    sweep = load_sweep(path)
    write_results(sweep)
    assert script.main([str(path), "--collect"]) == 0
    assert "best: learning_rate=0.0001,seed=0, eval/token_loss/all 1 at step 4" in capsys.readouterr().out
    with open(sweep.directory / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "done", "failed", "missing"]
    assert (rows[1]["train.seed"], rows[1]["eval/token_loss/all"], rows[1]["best_step"]) == ("1", "2.0", "4")
    assert rows[3]["eval/token_loss/all"] == rows[3]["loss"] == ""
    for name in ("curves.png", "metric.png"):
        picture = Image.open(sweep.directory / name).convert("RGB")
        assert len(picture.getcolors(maxcolors=1 << 20)) > 20, name


@pytest.mark.parametrize(("goal", "best"), [("min", [(1.0, 4), (2.0, 4)]), ("max", [(2.0, 8), (3.0, 8)])])
def test_the_goal_decides_what_is_best(write, goal, best, capsys):
    path = write(grid=GRID, goal=goal)
    write_results(load_sweep(path))
    assert script.main([str(path), "--status", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["eval/token_loss/all"], row["best_step"]) for row in rows[:2]] == best


def test_a_metric_that_no_run_has_logged_is_named(write, capsys):
    path = write(grid=GRID, metric="eval/tokenloss")
    sweep = load_sweep(write(grid=GRID))
    write_results(sweep)
    assert script.main([str(write(grid=GRID, metric="eval/tokenloss")), "--collect"]) == 2
    assert "metric 'eval/tokenloss'" in (error := capsys.readouterr().err) and "'eval/token_loss/all'" in error
    assert path.exists()


# starting


def test_gpus_are_shared_out():
    assert share_gpus([], 2) == [None, None]
    assert share_gpus(["0", "1", "2", "3", "4"], 2) == [["0", "1"], ["2", "3"]]
    with pytest.raises(ValueError, match="--local 3 on 2 GPUs: two cells would share the memory of one; use --local 2"):
        share_gpus(["0", "1"], 3)


def test_without_slurm_nothing_is_submitted(write, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = write(grid=GRID)
    sweep = load_sweep(path)
    assert script.main([str(path), "--submit"]) == 2
    assert "this machine has no sbatch: nothing was submitted" in capsys.readouterr().err
    assert not sweep.directory.exists()
    # Submitted from elsewhere: what runs could not be told from what was killed.
    (sweep.directory / "submissions").mkdir(parents=True)
    jobs = [{"job_id": "3", "cells": ["x", sweep.cells[0].name]}, {"job_id": "9", "cells": ["x"]}]
    (sweep.directory / "submissions" / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    assert script.main([str(path), "--local", "1"]) == 2
    assert "this machine has no squeue" in capsys.readouterr().err
    assert [log_path(sweep, name).name for name in ("x", sweep.cells[0].name)] == ["9_0.log", "3_1.log"]


@pytest.mark.parametrize(
    ("arguments", "task", "message"),
    [
        ([], None, "no config was given"),
        (["configs/safari_tiny.json", "train.lr=1"], None, "unknown key 'train.lr'"),
        (["no/such.json"], None, "no/such.json: No such file"),
        (["{list}"], "1", "list.txt has no line 2: array task 1 has no config"),
    ],
)
def test_the_batch_script_names_a_users_mistake(tmp_path, arguments, task, message):
    (tmp_path / "list.txt").write_text("configs/safari_tiny.json\n")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"SLURM_ARRAY_TASK_ID": task} if task else {}
    command = ["bash", "scripts/slurm/train.sbatch", *(a.format(list=tmp_path / "list.txt") for a in arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and f"error: {message}" in done.stderr.replace(f"{tmp_path}/", ""), done.stderr
    elsewhere = subprocess.run(["bash", REPOSITORY / command[1]], cwd=tmp_path, capture_output=True, text=True)
    assert elsewhere.returncode == 2 and "has no train.py" in elsewhere.stderr


@pytest.mark.slow
def test_cells_run_here_side_by_side_and_stop_when_asked(tmp_path):
    """One cell trains on, the other cannot start; SIGTERM lets the first save."""
    from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config  # the others need no torch

    checkpoint, dataset = save_tiny_checkpoint(tmp_path / "base"), save_dataset(tmp_path / "data")
    config = tiny_config(tmp_path, checkpoint, dataset, train={"max_steps": 5000})
    broken = {"data.sources": [{"path": "no/such.jsonl", "kind": "chat"}]}
    values = {"config": str(save_config(config, tmp_path / "base.json")), "cells": {"long": {}, "broken": broken}}
    path = tmp_path / "study.json"
    path.write_text(json.dumps(values))
    command = [sys.executable, "scripts/sweep.py", str(path)]
    sweep = load_sweep(path)
    metrics = sweep.cells[0].config.run_dir / "metrics.jsonl"

    def states() -> list[str]:
        done = subprocess.run([*command, "--status", "--json"], cwd=REPOSITORY, capture_output=True, text=True)
        return [row["state"] for row in json.loads(done.stdout)]

    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([*command, "--local", "2"], cwd=REPOSITORY, env=environment, stderr=log, stdout=log)
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.stat().st_size and states()[1] == "failed"):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.5)
    assert states() == ["running", "failed"]
    second = subprocess.run([*command, "--local", "1"], cwd=REPOSITORY, capture_output=True, text=True)
    assert second.returncode == 2 and "is being run by another process" in second.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 1
    assert states() == ["stopped", "failed"] and read_progress(sweep.cells[0].config.run_dir).saved_step > 0
    assert "no/such.jsonl" in (sweep.directory / "logs" / "broken.log").read_text()
