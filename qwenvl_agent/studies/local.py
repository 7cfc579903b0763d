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

from qwenvl_agent.studies.cells import Cell, Sweep, freeze, frozen_path
from qwenvl_agent.studies.programs import program
from qwenvl_agent.studies.progress import DONE, RUNNING, read_progress, state_of

POLL_S = 0.2


def run_cells(sweep: Sweep, cells: Sequence[Cell], num_at_once: int) -> dict[str, str]:
    """Cell name -> its state afterwards. Ctrl-C and SIGTERM let the running ones save and end, and start no more."""
    with locked(sweep) as lock, progress_bar(len(cells)) as bar, interrupt_on_sigterm():
        shares = share_gpus(visible_gpus(), num_at_once)
        freeze(sweep, cells)
        (sweep.directory / "logs").mkdir(exist_ok=True)
        slots = Slots(sweep, shares, lock)
        waiting = list(cells)
        while waiting or slots.running:
            try:
                while waiting and slots.has_room:
                    slots.start(waiting.pop(0))
                time.sleep(POLL_S)
                for name, state in slots.take_ended().items():
                    bar.advance(bar.task_ids[0], state == DONE)
                    bar.console.print(f"{name}: {state} ({local_log(sweep, name)})", soft_wrap=True, highlight=False)
            except KeyboardInterrupt:
                bar.console.print("interrupted: the running cells save a checkpoint and end; --local again goes on")
                waiting, slots.is_stopping = [], True
    return slots.ended


class Slots:
    """The cells that run now, each in a slot; the slot's number decides which GPUs are the cell's."""

    def __init__(self, sweep: Sweep, shares: Sequence[Sequence[str] | None], lock: TextIO):
        self.sweep, self.shares, self.lock = sweep, shares, lock
        self.running: dict[int, tuple[Cell, subprocess.Popen]] = {}
        self.ended: dict[str, str] = {}
        self.is_stopping = False

    @property
    def has_room(self) -> bool:
        return len(self.running) < len(self.shares)

    def start(self, cell: Cell) -> None:
        slot = min(set(range(len(self.shares))) - self.running.keys())
        gpus = self.shares[slot]
        run_dir = cell.config.run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "exit_status").unlink(missing_ok=True)
        environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(self.shares)))} | os.environ
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        with open(local_log(self.sweep, cell.name), "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                launch_command(frozen_path(self.sweep, cell), len(gpus) if gpus else 1),
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the terminal's Ctrl-C is ours to answer
                pass_fds=[self.lock.fileno()],
            )
        self.running[slot] = cell, process
        self._list()

    def take_ended(self) -> dict[str, str]:
        """Cell name -> state of those that ended since the last call."""
        ended = {}
        for slot, (cell, process) in list(self.running.items()):
            run_dir = cell.config.run_dir
            if process.poll() is not None:
                (run_dir / "exit_status").write_text(f"{process.returncode}\n", encoding="utf-8")
                ended[cell.name] = state_of(read_progress(run_dir))
                del self.running[slot]
                self._list()
            elif self.is_stopping:
                # Again and again: a trainer that is just starting takes it for a file of an earlier stop.
                (run_dir / "STOP").touch()
        self.ended |= ended
        return ended

    def _list(self) -> None:
        list_running(self.lock, [cell.name for cell, _ in self.running.values()])


def launch_command(config_path: Path, num_processes: int) -> list[str]:
    options = ["--num_machines", "1", "--num_processes", str(num_processes), "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--quiet"]
    if num_processes > 1:
        options += ["--multi_gpu", "--main_process_port", "0"]  # a free one, for several launchers run here
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*launcher, *options, *program("train.py"), "--config", str(config_path), "--resume"]


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
