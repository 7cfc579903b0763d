"""Training with evaluations in a live browser for long: memory, open files, threads and processes stay what they are.

Case 0 takes two minutes, case 1 an hour, from the first log line on. The tiny model that clicks trains (LoRA, one data
worker); every few steps it is saved, evaluated on held-out rows, and plays missions in Chromium. Looked at once a second: the
resident memory of the trainer with its worker, their open files and threads, and the processes of Chromium (one stays for
the next evaluation). From one evaluation to the next is a round; the most and the least of the rounds in the second half must
not be more than in the first, but for what measuring is worth (5 % and 30 MiB; 4 files; 2 threads; 3 processes); the first two
rounds are not compared. STOP then ends it all with status 0.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil
from attack import Attack, Outcome
from trainings import ROOT, is_gone, kill_group

SECONDS = (120, 3600)
LEAST_EVALUATIONS = 6
LONGEST = 2.0
"""Times SECONDS, if the machine is busy and LEAST_EVALUATIONS take longer."""
START_UP = 2
"""Rounds that are not compared."""
ROOMS = {"resident_mib": (30, 0.05), "files": (4, 0.0), "threads": (2, 0.0), "browsers": (3, 0.0)}
"""What each may have grown by: so much, and a share of it."""


@dataclass(frozen=True)
class Sample:
    """Of the trainer and its data worker, at one moment."""

    evaluations: int
    """That were over."""
    resident_mib: float
    files: int
    threads: int
    browsers: int


def run(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    record_data(scratch)
    for case in cases:
        name = f"{SECONDS[case] // 60} minutes of LoRA with evaluations, missions and Chromium"
        note, said = soak(scratch / f"case_{case}", scratch / "data", SECONDS[case])
        yield Outcome(name, not note, f"{note or 'flat'} ({said})")


def record_data(scratch: Path) -> None:
    words = [sys.executable, "-m", "qwenvl_agent", "record", "--world", "browser", "--rule", 'tasks=["boards"]']
    words += [
        "--rule",
        'actions=["left_click"]',
        "--rule",
        "past_steps=0",
        "--episodes",
        "24",
        "--out",
        scratch / "data",
    ]
    with open(scratch / "log_record", "w") as log:
        subprocess.run(words, check=True, cwd=ROOT, env=environment(), stdout=log, stderr=log)


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def configuration(folder: Path, data: Path) -> Path:
    world = {"tasks": ["boards"], "actions": ["left_click"], "past_steps": 0}
    groups = {
        "name": "run",
        "runs_dir": str(folder / "runs"),
        "model": {"path": "tiny_screens", "method": "lora", "lora_rank": 4, "dtype": "float32", "autocast": False},
        "data": {"sources": [{"path": str(data), "kind": "recorded"}], "eval_fraction": 0.2, "num_workers": 1},
        "prompt": {"format": "native"},
        "vision": {"max_tokens_per_image": 64},
        "train": {
            **{"max_steps": 1_000_000, "batch_size": 2, "accumulation": 1, "log_every": 1, "learning_rate": 1e-5},
            **{"eval_every": 10, "save_every": 10, "keep_checkpoints": 1},
        },
        "eval": {
            "suite": "browser",
            "world": world,
            "episodes": 2,
            "step_rows": 2,
            "max_new_tokens": 24,
            "batch_size": 2,
        },
    }
    groups["data"]["cache_dir"] = str(folder / "cache")
    path = folder / "config.json"
    path.write_text(json.dumps(groups))
    return path


def soak(folder: Path, data: Path, seconds: float) -> tuple[str, str]:
    """What is wrong, "" if nothing is; and the figures."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    words = [sys.executable, "train.py", "--config", str(configuration(folder, data))]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=log, stderr=log, start_new_session=True)
    try:
        samples, evaluations, steps = watch(process, folder, seconds)
        (folder / "runs" / "run" / "STOP").touch()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=600)
        status = process.poll()
        is_all_gone = is_gone(process.pid)
    finally:
        kill_group(process.pid)
    said = f"{steps} steps, {evaluations} evaluations"
    if status != 0 or not is_all_gone:
        end = " ".join((folder / "log").read_text(errors="replace")[-500:].split())
        return f"status {status}, {'all' if is_all_gone else 'not all'} processes gone: {end}", said
    if evaluations < LEAST_EVALUATIONS:
        return f"only {evaluations} evaluations", said
    grown, figures = growth(samples)
    return grown, f"{said}, {figures}"


def watch(process: subprocess.Popen, folder: Path, seconds: float) -> tuple[list[Sample], int, int]:
    """Samples, evaluations, steps."""
    samples: list[Sample] = []
    path, begun = folder / "runs" / "run" / "metrics.jsonl", time.monotonic()
    started = None
    while process.poll() is None:
        time.sleep(1)
        now = time.monotonic()
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        if not lines:
            if now > begun + 600:
                break
            continue
        started = started or now
        evaluations = path.read_text().count('"rollout/success_rate"')
        if sample := look(process.pid, evaluations):
            samples.append(sample)
            with open(folder / "samples.jsonl", "a") as file:  # for whoever cannot wait for the end
                file.write(json.dumps(asdict(sample)) + "\n")
        is_enough = now > started + seconds and evaluations >= LEAST_EVALUATIONS
        if is_enough or now > started + LONGEST * seconds + 300:
            return samples, evaluations, lines - evaluations
    return samples, 0, 0


def look(trainer: int, evaluations: int) -> Sample | None:
    """None if a process ended while it was looked at."""
    with suppress(OSError, ValueError, IndexError):
        own = [trainer, *(pid for pid in below(trainer, deep=False) if not name_of(pid).startswith(("node", "chrom")))]
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in own]
        resident = sum(int(text.split("VmRSS:")[1].split()[0]) for text in statuses) / 1024
        threads = sum(int(text.split("Threads:")[1].split()[0]) for text in statuses)
        files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in own)
        browsers = sum("chrom" in name_of(pid) for pid in below(trainer, deep=True))
        return Sample(evaluations, resident, files, threads, browsers)
    return None


def name_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def below(pid: int, *, deep: bool) -> list[int]:
    """The processes that it has started; `deep`: and theirs."""
    with suppress(psutil.NoSuchProcess):
        return [process.pid for process in psutil.Process(pid).children(recursive=deep)]
    return []


def growth(samples: Sequence[Sample]) -> tuple[str, str]:
    """What has grown, "" if nothing has; and of both halves of the rounds the highest least and the highest median: of
    thousands of looks the most is one moment's, and the later half has as many chances to beat the earlier."""
    numbers = sorted({sample.evaluations for sample in samples})[START_UP:-1]
    halves = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    grown, figures = [], []
    for name, (room, share) in ROOMS.items():
        spans = []
        for half in halves:
            rounds = [[getattr(s, name) for s in samples if s.evaluations == number] for number in half]
            spans.append((max(map(min, rounds)), max(map(median, rounds))))
        figures.append(f"{name} {spans[0][0]:.0f} to {spans[0][1]:.0f}, then {spans[1][0]:.0f} to {spans[1][1]:.0f}")
        if any(after > before + room + share * before for before, after in zip(*spans, strict=True)):
            grown.append(figures[-1])
    return "; ".join(grown), "; ".join(figures)


ATTACK = Attack(
    "soak", "long training with evaluations in a browser", full=2, quick=1, seconds=5400, run=run, patience=7800
)
