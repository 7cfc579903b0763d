"""Disks that are full, fail, are read-only or slow, and data that change or vanish while a training reads them.

A disk that fails does so from one file operation on (mostly one of saving), by the errno that the system would give; a full
one is also a real small file system where the tests may mount one. The training then ends with status 2 and one line that says
why, or, if it had nothing more to write, with 0; resumed on a sound disk it ends with the bits of the run that nothing hit. On a
slow disk it just ends with them. Of data that change meanwhile it either ends with them (what it needed it had read) or with
status 2 and a line that names the file; with the data back it goes on to them.
"""

import errno
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attack import Attack, Outcome, random_of
from kills import SCENARIOS, Field, Training, difference, is_finished, pick_operation
from trainings import Strike, is_gone, kill_group, warm_process

FULL = {
    errno.ENOSPC: "full disk",
    errno.EDQUOT: "used up quota",
    errno.EIO: "failing disk",
    errno.EROFS: "read-only disk",
}
NAMES = ("LoRA", "full", "kept features", "packs", "QLoRA")
DATA = ("picture removed", "picture cut off", "rows removed", "rows cut off", "all removed", "cache removed")


def run(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    with warm_process(scratch) as warm:
        field = Field(scratch, warm)
        for case in cases:
            random = random_of(seed, case)
            name, folder = random.choice(NAMES), scratch / f"case_{case}"
            training = Training(field, SCENARIOS[name], folder)
            kind, note = TRIES[case % len(TRIES)](training, random)
            if not all(is_gone(group) for group in training.groups):
                note = note or "processes are left"
            for group in training.groups:
                kill_group(group)
            note = f"{note}: {training.said()}" if note else ""
            shutil.rmtree(folder, ignore_errors=True)
            yield Outcome(kind, not note, note)


def failing(training: Training, random: random.Random, moment: str = "inside a save") -> tuple[str, str]:
    number = random.choice(list(FULL))
    whole = training.field.uninterrupted(training.scenario)
    nth = pick_operation(whole, 0, moment, random)
    status = training.start_and_wait(1, [Strike(str(training.folder), nth, error=number)])[0]
    kind = f"{FULL[number]}, {training.scenario.name}, {moment}"
    return kind, wrong_end(training, status) or resumed(training, whole)


def failing_anywhere(training: Training, random: random.Random) -> tuple[str, str]:
    return failing(training, random, "at a file operation")


def read_only_from_the_start(training: Training, random: random.Random) -> tuple[str, str]:
    number = random.choice((errno.EROFS, errno.EACCES))
    whole = training.field.uninterrupted(training.scenario)
    status = training.start_and_wait(1, [Strike(str(training.folder), 1, error=number)])[0]
    return "read-only folder, from the start", wrong_end(training, status) or resumed(training, whole)


def slow(training: Training, random: random.Random) -> tuple[str, str]:
    whole = training.field.uninterrupted(training.scenario)
    delay = random.choice((2_000, 20_000, 60_000))
    status = training.start_and_wait(1, [Strike(str(training.folder), delay_us=delay)])[0]
    kind = f"slow disk, {delay // 1000} ms each operation"
    return kind, f"status {status}" if status else difference(training, whole)


def small_disk(training: Training, random: random.Random) -> tuple[str, str]:
    """A real one, on which the run's folder lies; where nothing may be mounted, one that says it is full."""
    if os.geteuid() != 0:
        return failing(training, random)
    whole = training.field.uninterrupted(training.scenario)
    size = random.randint(300, 4000)
    with mounted(training.folder / "runs", size):
        status = training.start_and_wait(1, [None])[0]
        note = wrong_end(training, status)
        subprocess.run(["mount", "-o", "remount,size=64m", training.folder / "runs"], check=True)
        note = note or resumed(training, whole)
    return "small disk (tmpfs)", note


@contextmanager
def mounted(folder: Path, size_kb: int) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def data_meanwhile(training: Training, random: random.Random) -> tuple[str, str]:
    """Something happens to data that are this training's own, after its first step."""
    what = random.choice(DATA)
    data = training.folder / "data"
    shutil.copytree(training.field.scratch / "data", data, ignore=shutil.ignore_patterns("cache"))
    training.data = data
    whole = Training(training.field, training.scenario, training.folder.with_name("whole_of_data"))
    whole.data = data
    if whole.start_and_wait(1, [None]) != [0]:
        return what, "the run that nothing hit has failed"
    saved = shutil.copytree(data, training.folder / "saved")
    pid = training.start(1, [None])[0]
    metrics = training.run_dir / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and not training.field.warm.is_over(pid):
        time.sleep(0.01)
    harm_data(what, data, training.folder / "cache", random)
    status = training.field.warm.wait(pid)
    note = wrong_end(training, status)
    if status and "dataset.jsonl" not in training.said(1000) and "cache" not in training.said(1000):
        note = note or "the end names no file"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(saved, data)
    return f"{what} meanwhile", note or resumed(training, whole)


def harm_data(what: str, data: Path, cache: Path, random: random.Random) -> None:
    path = random.choice(sorted(data.glob("*.png")))
    if what == "picture removed":
        path.unlink()
    elif what == "picture cut off":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif what == "rows removed":
        (data / "dataset.jsonl").unlink()
    elif what == "rows cut off":
        os.truncate(data / "dataset.jsonl", (data / "dataset.jsonl").stat().st_size // 2)
    elif what == "all removed":
        shutil.rmtree(data)
    else:
        shutil.rmtree(cache)


def wrong_end(training: Training, status: int | None) -> str:
    """Of a run that may have been hit: status 0 or 2, and then one line that says why."""
    if status == 0:
        return ""
    if status != 2:
        return f"status {status}"
    text = (training.folder / "log_0").read_text(errors="replace")
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if len(errors) != 1 or "Traceback" in text:
        return f"{len(errors)} lines of error, {'a' if 'Traceback' in text else 'no'} traceback"
    return ""


def resumed(training: Training, whole: Training) -> str:
    if not is_finished(training, whole):
        statuses = training.start_and_wait(1, [None], "--resume")
        if statuses != [0]:
            return f"resumed: status {statuses}"
    return difference(training, whole)


TRIES = (
    *(failing, data_meanwhile, failing, small_disk, failing, failing_anywhere),
    *(slow, failing, data_meanwhile, failing, read_only_from_the_start, data_meanwhile),
)
ATTACK = Attack(
    "disks",
    "disks that are full, fail, are read-only or slow; data that change meanwhile",
    full=72,
    quick=2,
    seconds=2400,
    run=run,
    patience=1500,
)
