"""Kills of trainings, each then resumed: it ends with the bits of the run that was never killed.

A kill comes at a file operation (mostly one of saving: half of a write is on the disk then), at a forward pass in the
middle of accumulation, or in an evaluation; it is a SIGKILL or a signal that asks to end; it hits the trainer, a data
worker, one rank of two, or the launcher; it may hit the resumed run again. What goes on may have another number of data
workers.

Compared with the uninterrupted run: every tensor and every other value of the `last` and of the `best` checkpoint, and the
lines of metrics.jsonl, each once and whole (all but what depends on the clock). And no process is left.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attack import Attack, Outcome, random_of
from trainings import LONGEST_S, ROOT, Poison, Strike, Warm, is_gone, kill_group, two_ranks, warm_process

CLOCKED = ("train/tokens_per_s", "train/data_wait_share")
SIGNALS = (*[signal.SIGKILL] * 5, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
MOMENTS = (*["inside a save"] * 6, "at a file operation", "in accumulation", "in an evaluation")
MOST_STARTS = 6


@dataclass(frozen=True)
class Scenario:
    """A training, and how it is started."""

    name: str
    groups: dict[str, dict]
    num_ranks: int = 1
    environment: tuple[tuple[str, str], ...] = (("ACCELERATE_USE_CPU", "true"),)


ZERO = (("ACCELERATE_USE_DEEPSPEED", "true"),)
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("LoRA", {"model": {"lora_dropout": 0.3, "gradient_checkpointing": True}}),
        Scenario("QLoRA", {"model": {"method": "qlora"}}),
        Scenario("full", {"model": {"method": "full"}}),
        Scenario("packs", {"model": {"attention": "sdpa"}, "train": {"pack_tokens": 300}}),
        Scenario("kept features", {"vision": {"feature_cache_gb": 1.0}}),
        Scenario("DDP", {"train": {"batch_size": 1}}, 2),
        Scenario("ZeRO-2", {"train": {"batch_size": 1, "zero_stage": 2}}, 2, ZERO),
        Scenario("ZeRO-3", {"train": {"batch_size": 1, "zero_stage": 3}}, 2, ZERO),
    )
}
# Of 20 cases in a row; (scenario, who is hit).
TURNS = (
    *(("LoRA", "trainer"), ("full", "trainer"), ("packs", "trainer"), ("kept features", "trainer")),
    *(("ZeRO-2", "rank"), ("QLoRA", "trainer"), ("LoRA", "data worker"), ("full", "trainer"), ("packs", "trainer")),
    *(("DDP", "rank"), ("kept features", "trainer"), ("LoRA", "trainer"), ("LoRA", "launcher"), ("QLoRA", "trainer")),
    *(("ZeRO-3", "rank"), ("packs", "data worker"), ("full", "trainer"), ("LoRA", "trainer"), ("DDP", "rank")),
    ("kept features", "trainer"),
)


def run(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    with warm_process(scratch) as warm:
        field = Field(scratch, warm)
        for case in cases:
            yield one_case(field, random_of(seed, case), *TURNS[case % len(TURNS)], scratch / f"case_{case}")


class Field:
    """The base, the data and the uninterrupted runs, which all cases share."""

    def __init__(self, scratch: Path, warm: Warm):
        self.scratch, self.warm = scratch, warm
        self.whole: dict[str, Training] = {}
        # Made in a process of its own, or this one would import torch.
        code = "import sys; from pathlib import Path; from tiny_run import *; d = Path(sys.argv[1])\n"
        code += "save_tiny_checkpoint(d / 'base'); save_mixed_dataset(d / 'data', 16, range(0, 16, 2))"
        path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
        words = [sys.executable, "-c", code, str(scratch)]
        subprocess.run(words, check=True, env=os.environ | {"PYTHONPATH": path}, capture_output=True)

    def uninterrupted(self, scenario: Scenario) -> "Training":
        """The run that was never killed, with a list of its file operations for each rank."""
        if scenario.name not in self.whole:
            training = Training(self, scenario, self.scratch / f"whole_{scenario.name.replace(' ', '_')}")
            logs = [Strike(str(training.folder), log=str(training.operations(r))) for r in range(scenario.num_ranks)]
            statuses = training.start_and_wait(1, logs)
            assert statuses == [0] * scenario.num_ranks, training.said()
            self.whole[scenario.name] = training
        return self.whole[scenario.name]


class Training:
    """One run in a folder of its own, started as often as needed."""

    def __init__(self, field: Field, scenario: Scenario, folder: Path):
        self.field, self.scenario, self.folder = field, scenario, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.run_dir, self.data = folder / "runs" / "run", field.scratch / "data"
        self.groups: list[int] = []
        """Process groups of all that was started."""
        self.statuses: list[int | None] = []
        """Of the last start, by rank; none for one whose ranks were not waited for one by one."""

    def operations(self, rank: int) -> Path:
        return self.folder.with_name(f"{self.folder.name}_operations_{rank}")

    def config(self, num_workers: int) -> Path:
        groups: dict[str, Any] = {
            "name": "run",
            "runs_dir": str(self.folder / "runs"),
            "model": {
                **{"path": str(self.field.scratch / "base"), "method": "lora", "lora_rank": 4},
                **{"dtype": "float32", "autocast": False},
            },
            "data": {
                "sources": [{"path": str(self.data / "dataset.jsonl"), "kind": "chat"}],
                **{"cache_dir": str(self.folder / "cache"), "eval_fraction": 0.2, "num_workers": num_workers},
            },
            "prompt": {"format": "native"},
            "vision": {"max_tokens_per_image": 16, "min_tokens_per_image": 4},
            "train": {
                **{"max_steps": 4, "batch_size": 2, "accumulation": 2, "learning_rate": 1e-3},
                **{"log_every": 2, "save_every": 1, "eval_every": 2, "keep_checkpoints": 1},
            },
            "eval": {"suite": "none", "step_rows": 2, "max_new_tokens": 4, "batch_size": 4},
        }
        for group, changes in self.scenario.groups.items():
            groups[group] = groups[group] | changes
        path = self.folder / f"config_{num_workers}.json"
        path.write_text(json.dumps(groups))
        return path

    def start(self, num_workers: int, harms: Sequence[Strike | Poison | None], *options: str) -> list[int]:
        """Process ids, by rank."""
        words = ["--config", self.config(num_workers), *options]
        ranks = two_ranks() if self.scenario.num_ranks == 2 else [{}]
        pids = []
        for number, (rank, harm) in enumerate(zip(ranks, harms, strict=True)):
            environment = dict(self.scenario.environment) | rank
            pids.append(self.field.warm.start(words, self.folder / f"log_{number}", harm, **environment))
        self.groups += pids
        return pids

    def start_and_wait(
        self, num_workers: int, harms: Sequence[Strike | Poison | None], *options: str
    ) -> list[int | None]:
        self.statuses = [self.field.warm.wait(pid) for pid in self.start(num_workers, harms, *options)]
        return self.statuses

    def said(self, num_characters: int = 400) -> str:
        """The end of what the ranks have said."""
        texts = [path.read_text(errors="replace") for path in sorted(self.folder.glob("log_*"))]
        return " | ".join(" ".join(text[-num_characters:].split()) for text in texts)


def one_case(field: Field, random: random.Random, name: str, target: str, folder: Path) -> Outcome:
    scenario = SCENARIOS[name]
    whole = field.uninterrupted(scenario)
    number, moment = random.choice(SIGNALS), random.choice(MOMENTS)
    if target == "launcher":
        moment = random.choice(("inside a save", "at a file operation"))
    if target == "data worker":
        moment = random.choice(("in accumulation", "in an evaluation"))
    if name == "ZeRO-3" and moment == "in an evaluation":  # which has none
        moment = "inside a save"
    kind = f"{number.name}, {name}, {target}, {moment}"
    training = Training(field, scenario, folder)
    try:
        note = hit_and_resume(training, whole, random, number, moment, target)
        if not note and not all(is_gone(group) for group in training.groups):
            note = "processes are left"
    finally:
        for group in training.groups:
            kill_group(group)
    if note:
        note += f": {training.said()}"
    else:
        shutil.rmtree(folder)
    return Outcome(kind, not note, note)


def hit_and_resume(
    training: Training, whole: Training, random: random.Random, number: int, moment: str, target: str
) -> str:
    """What is wrong at the end; "" if nothing is."""
    if target == "launcher":
        note = hit_launcher(training, random, number, pick_operation(whole, 0, moment, random))
    else:
        note = hit(training, whole, random, number, moment, target == "data worker")
    again = random.random() < 0.2
    starts = 1
    while not note and not is_finished(training, whole) and starts < MOST_STARTS:
        workers = random.choice((0, 1, 2))
        if again:
            again, note = (
                False,
                hit(training, whole, random, signal.SIGKILL, "inside a save", False, workers, "--resume"),
            )
        else:
            nobody = [None] * training.scenario.num_ranks
            statuses = training.start_and_wait(workers, nobody, "--resume")
            note = "" if statuses == [0] * len(statuses) else f"resumed: status {statuses}"
        starts += 1
    return note or difference(training, whole)


def hit(
    training: Training,
    whole: Training,
    random: random.Random,
    number: int,
    moment: str,
    worker: bool,
    num_workers: int = 1,
    *options: str,
) -> str:
    """Start it with a strike at one rank, and wait until all ranks have ended."""
    rank = random.randrange(training.scenario.num_ranks)
    if moment in ("inside a save", "at a file operation"):
        strike = Strike(str(training.folder), pick_operation(whole, rank, moment, random), number)
    else:
        is_training = moment == "in accumulation" or rank > 0
        strike = Strike(signal=number, forward=random.randint(1, 8), training=is_training, worker=worker)
    strikes = [strike if r == rank else None for r in range(training.scenario.num_ranks)]
    statuses = training.start_and_wait(max(num_workers, int(worker)), strikes, *options)
    return f"does not end after the kill: {statuses}" if None in statuses else ""


def pick_operation(whole: Training, rank: int, moment: str, random: random.Random) -> int:
    """The number of one of the file operations that the uninterrupted run did."""
    lines = whole.operations(rank).read_text().split()
    numbers = [n for n, line in enumerate(lines, 1) if line == "s" or moment != "inside a save"]
    return random.choice(numbers or [1])


def hit_launcher(training: Training, random: random.Random, number: int, nth: int) -> str:
    """`accelerate launch` gets the signal when its trainer is at that file operation."""
    words = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", str(ROOT / "train.py")]
    environment = os.environ | {
        **{"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
        "PYTHONPATH": str(ROOT),
        **{"LD_PRELOAD": str(training.field.scratch / "file_operations.so"), "TORTURE_FOLDER": str(training.folder)},
        **{"TORTURE_NTH": str(nth), "TORTURE_SIGNAL": str(int(number)), "TORTURE_PARENT": "1"},
        "TORTURE_NEEDS": "ACCELERATE_MIXED_PRECISION",
    }
    with open(training.folder / "log_launcher", "w") as log:
        process = subprocess.Popen(
            [*words, "--config", str(training.config(1))],
            **{"env": environment, "cwd": ROOT, "stdout": log, "stderr": log, "start_new_session": True},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    training.groups.append(process.pid)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=LONGEST_S)
    if process.poll() is None or not is_gone(process.pid, 60):
        return "the launcher or its trainer does not end"
    return ""


def is_finished(training: Training, whole: Training) -> bool:
    """Whether it ended by itself, with the last step there and evaluated, as it is in the whole run."""
    if not training.statuses or any(training.statuses):
        return False
    ours, theirs = training.run_dir / "checkpoints" / "last", whole.run_dir / "checkpoints" / "last"
    return (ours / "evaluation.json").exists() and ours.resolve().name == theirs.resolve().name


# comparing


def difference(training: Training, whole: Training) -> str:
    """The first thing that is not as in the uninterrupted run; "" if there is none."""
    for name in ("last", "best"):
        ours, theirs = training.run_dir / "checkpoints" / name, whole.run_dir / "checkpoints" / name
        if ours.exists() != theirs.exists():
            return f"{name}: {'missing' if theirs.exists() else 'of no evaluation'}"
        if theirs.exists() and ours.resolve().name != theirs.resolve().name:
            return f"{name} is {ours.resolve().name}, {theirs.resolve().name} in the whole run"
        if theirs.exists() and (note := folder_difference(ours, theirs)):
            return f"{name}/{note}"
    return lines_difference(training.run_dir / "metrics.jsonl", whole.run_dir / "metrics.jsonl")


def folder_difference(ours: Path, theirs: Path) -> str:
    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for folder in (ours, theirs)
    ]
    if names[0] != names[1]:
        return f"other files: {sorted(names[0] ^ names[1])}"
    for name in sorted(names[0] - {"checksums.json", "config.json"}):
        if values(ours / name) != values(theirs / name):
            return f"{name} differs"
    return ""


def values(path: Path) -> object:
    """A file's content without what depends on the clock."""
    if path.suffix == ".pt":
        return pickled_values(path)
    if path.suffix != ".json":
        return path.read_bytes()
    content = json.loads(path.read_text())
    for clocked in CLOCKED:
        for holder in (content, content.get("means", {})):
            holder.pop(clocked, None)
    return content


def pickled_values(path: Path) -> object:
    """Of DeepSpeed's files: tensors as their bytes."""
    import torch

    def plain(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return (
                str(value.dtype),
                value.shape,
                value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
            )
        if isinstance(value, dict):
            return {str(key): plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        return value if isinstance(value, int | float | str | bool | None) else repr(type(value))

    return plain(torch.load(path, map_location="cpu", weights_only=False))


def lines_difference(ours: Path, theirs: Path) -> str:
    lines = []
    for path in (ours, theirs):
        text = path.read_text()
        if text and not text.endswith("\n"):
            return "metrics.jsonl has a half line"
        try:
            entries = [json.loads(line) for line in text.splitlines()]
        except ValueError as error:
            return f"metrics.jsonl has a line that is no JSON: {error}"
        lines.append([{key: value for key, value in entry.items() if key not in CLOCKED} for entry in entries])
    steps = [[entry["step"] for entry in some] for some in lines]
    if steps[0] != steps[1]:
        return f"metrics.jsonl has the steps {steps[0]}, {steps[1]} in the whole run"
    return "" if lines[0] == lines[1] else "metrics.jsonl has other values"


ATTACK = Attack(
    "kills",
    "a training is killed, mostly inside a save, and resumed",
    full=200,
    quick=3,
    seconds=4500,
    run=run,
    patience=1500,
)
