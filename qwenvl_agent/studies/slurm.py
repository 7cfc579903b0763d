"""A sweep's cells as one sbatch array, and the queue's view of them."""

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from qwenvl_agent.studies.cells import Cell, Sweep, freeze, frozen_path
from qwenvl_agent.studies.progress import QUEUED, RUNNING

BATCH_SCRIPT = "scripts/slurm/train.sbatch"
ACTIVE = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED")


def submit(sweep: Sweep, cells: Sequence[Cell], limit: int, options: Sequence[str]) -> str:
    """The job's id. At most `limit` tasks run at a time; `options` are sbatch's own."""
    if shutil.which("sbatch") is None:
        raise ValueError("this machine has no sbatch: nothing was submitted; log in to the cluster, or use --local N")
    if not Path(BATCH_SCRIPT).exists():
        raise ValueError(f"there is no {BATCH_SCRIPT} here: nothing was submitted; start from the repository's folder")
    freeze(sweep, cells)
    folder, logs = sweep.directory / "submissions", sweep.directory / "logs"
    folder.mkdir(exist_ok=True)
    logs.mkdir(exist_ok=True)
    paths = folder / f"{time.time_ns()}.txt"
    paths.write_text("".join(f"{frozen_path(sweep, cell)}\n" for cell in cells), encoding="utf-8")
    array = [f"--array=0-{len(cells) - 1}%{limit}", f"--job-name={sweep.name}", f"--output={logs}/%A_%a.log"]
    command = ["sbatch", "--parsable", *array, *options, BATCH_SCRIPT, str(paths)]
    print(shlex.join(command))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        paths.unlink()
        raise ValueError(f"sbatch refused, nothing was submitted; correct what it says: {done.stderr.strip()}")
    job_id = done.stdout.strip().partition(";")[0]
    with open(folder / "jobs.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"job_id": job_id, "cells": [cell.name for cell in cells]}) + "\n")
    return job_id


def submissions(sweep: Sweep) -> list[dict]:
    """Job id and cells by array task, in the order of submission."""
    path = sweep.directory / "submissions" / "jobs.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def queued_cells(sweep: Sweep) -> dict[str, str]:
    """Cell name -> RUNNING or QUEUED; ValueError if the queue cannot be asked, for then nothing may be started."""
    jobs = {job["job_id"]: job["cells"] for job in submissions(sweep)}
    if not jobs:
        return {}
    if shutil.which("squeue") is None:
        raise ValueError(
            f"{sweep.directory} was submitted to Slurm and this machine has no squeue: a cell that runs could not be "
            "told from one that was killed; log in to the cluster"
        )
    # An array task a line: the array's job id, the task's number, its state.
    done = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%F %K %T"], capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"squeue failed, so the cells' states are unknown; try again: {done.stderr.strip()}")
    cells = {}
    for line in done.stdout.splitlines():
        job_id, task, state = line.split()
        if job_id in jobs:
            cells[jobs[job_id][int(task)]] = RUNNING if state in ACTIVE else QUEUED
    return cells


def log_path(sweep: Sweep, cell_name: str) -> Path | None:
    """Of the cell's last submission."""
    for job in reversed(submissions(sweep)):
        if cell_name in job["cells"]:
            return sweep.directory / "logs" / f"{job['job_id']}_{job['cells'].index(cell_name)}.log"
    return None
