"""A sweep's cells on this machine, some at a time, each in a process of its own with its share of the GPUs.

One process runs a sweep; it and its trainers hold the lock on local.json, where the cells that run are listed. So the
lock is free only when the last of them is gone, even if this process was killed and left trainers behind.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from qwenvl_agent.sweep.cells import Cell, Sweep, freeze, frozen_path
from qwenvl_agent.sweep.progress import DONE, RUNNING, read_progress, state_of

POLL_S = 0.2


def run_cells(sweep: Sweep, cells: Sequence[Cell], num_at_once: int) -> dict[str, str]:
    """Cell name -> its state afterwards. Ctrl-C and SIGTERM let the running ones save and end, and start no more."""
    if not Path("train.py").exists():
        raise ValueError("there is no train.py here: nothing was started; start from the repository's folder")
    shares = share_gpus(visible_gpus(), num_at_once)
    waiting, running, ended = list(cells), {}, {}
    is_stopping = False
    (sweep.directory / "logs").mkdir(parents=True, exist_ok=True)
    with locked(sweep) as lock, progress_bar(len(cells)) as bar, interrupt_on_sigterm():
        freeze(sweep, cells)
        while running or (waiting and not is_stopping):
            try:
                while waiting and not is_stopping and len(running) < num_at_once:
                    slot = min(set(range(num_at_once)) - {slot for _, slot, _ in running.values()})
                    cell = waiting.pop(0)
                    running[cell.name] = cell, slot, start(sweep, cell, num_at_once, shares[slot], lock)
                    list_running(lock, running)
                time.sleep(POLL_S)
                for name, (cell, _, process) in list(running.items()):
                    if process.poll() is not None:
                        (cell.config.run_dir / "exit_status").write_text(f"{process.returncode}\n")
                        ended[name] = state_of(read_progress(cell.config.run_dir))
                        del running[name]
                        list_running(lock, running)
                        bar.advance(bar.task_ids[0], ended[name] == DONE)
                        bar.console.print(f"{name}: {ended[name]} ({local_log(sweep, name)})", soft_wrap=True)
            except KeyboardInterrupt:
                bar.console.print("interrupted: the running cells save a checkpoint and end; --local again goes on")
                is_stopping = True
                for cell, _, _ in running.values():
                    (cell.config.run_dir / "STOP").touch()
    return ended


def start(sweep: Sweep, cell: Cell, num_at_once: int, gpus: Sequence[str] | None, lock: TextIO) -> subprocess.Popen:
    """The launcher of one cell; away from the terminal's Ctrl-C, which is ours to answer."""
    run_dir = cell.config.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "exit_status").unlink(missing_ok=True)
    num_processes = len(gpus) if gpus else 1
    options = ["--num_machines", "1", "--num_processes", str(num_processes), "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--quiet"]
    if num_processes > 1:
        options += ["--multi_gpu", "--main_process_port", "0"]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_at_once))} | os.environ
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    training = ["train.py", "--config", str(frozen_path(sweep, cell)), "--resume"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *training]
    with open(local_log(sweep, cell.name), "a", encoding="utf-8") as log:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True, pass_fds=[lock.fileno()]
        )


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu not in ("", "-1")]
    # In a process of its own: this one stays small beside the trainers.
    count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return [str(i) for i in range(int(subprocess.run(count, capture_output=True, text=True, check=True).stdout))]


def share_gpus(gpus: Sequence[str], num_at_once: int) -> list[list[str] | None]:
    """GPUs of each of the cells that run at a time, as many for each; None: there are none."""
    if not gpus:
        return [None] * num_at_once
    share = len(gpus) // num_at_once
    if not share:
        raise ValueError(
            f"--local {num_at_once} on {len(gpus)} GPUs: two cells would share the memory of one; "
            f"use --local {len(gpus)} or less"
        )
    return [list(gpus[i * share : (i + 1) * share]) for i in range(num_at_once)]


def local_log(sweep: Sweep, cell_name: str) -> Path:
    return sweep.directory / "logs" / f"{cell_name}.log"


@contextmanager
def locked(sweep: Sweep) -> Iterator[TextIO]:
    """The open local.json, locked; ValueError if another process runs this sweep."""
    sweep.directory.mkdir(parents=True, exist_ok=True)
    with open(sweep.directory / "local.json", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{sweep.directory} is being run by another process: a cell would be trained twice; wait for its end"
            ) from None
        yield file
        list_running(file, ())


def list_running(file: TextIO, names: Sequence[str]) -> None:
    file.truncate(0)
    file.write(json.dumps(list(names)))
    file.flush()


def running_cells(sweep: Sweep) -> dict[str, str]:
    """Cell name -> RUNNING, for what a --local has in hand."""
    path = sweep.directory / "local.json"
    if not path.exists():
        return {}
    with open(path, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return dict.fromkeys(json.loads(file.read() or "[]"), RUNNING)
    return {}


@contextmanager
def progress_bar(num_cells: int) -> Iterator[Progress]:
    """Its only task counts the cells that are done."""
    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        bar.add_task("", total=num_cells)
        yield bar


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
