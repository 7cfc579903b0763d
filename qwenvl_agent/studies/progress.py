"""How far a sweep's runs are: from their own files, and from whoever has them in hand."""

import difflib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from qwenvl_agent.files import read_json
from qwenvl_agent.studies.cells import Cell, Sweep

RUNNING, QUEUED, DONE, FAILED, STOPPED, MISSING = "running", "queued", "done", "failed", "stopped", "missing"
STARTABLE = (FAILED, STOPPED, MISSING)


@dataclass(frozen=True)
class Progress:
    """What the files of a run say."""

    has_started: bool
    saved_step: int
    """Of the last whole checkpoint; 0: none."""
    max_steps: int | None
    """None until the first checkpoint, unless the config states it."""
    exit_status: int | None
    """Of the last start; None while it runs, and if it was killed."""
    lines: list[dict] = field(repr=False)
    """Of metrics.jsonl."""
    is_evaluated: bool = True
    """Whether the evaluation that the last checkpoint's step asks for is done; it comes after saving."""

    @property
    def is_done(self) -> bool:
        return self.max_steps is not None and self.saved_step >= self.max_steps and self.is_evaluated

    @property
    def step(self) -> int:
        return max([self.saved_step, *(line["step"] for line in self.lines)])

    @property
    def loss(self) -> float | None:
        losses = [line["train/loss"] for line in self.lines if "train/loss" in line]
        return losses[-1] if losses else None

    def best_line(self, sweep: Sweep) -> dict | None:
        """The first line of metrics.jsonl that holds the sweep's metric at its best."""
        best = None
        for line in self.lines:
            value = line.get(sweep.metric)
            if value is not None and not math.isnan(value):
                best = line if best is None or sweep.is_better(value, best[sweep.metric]) else best
        return best


def read_progress(run_dir: Path) -> Progress:
    config = read_json_if_there(run_dir / "config.json")
    if config and config.get("stages"):
        return read_curriculum(run_dir)
    last = run_dir / "checkpoints" / "last"
    state = read_json_if_there(last / "state.json")
    max_steps = config["train"]["max_steps"] if config else None
    if config and state and not max_steps:
        sampler = state["sampler"]
        max_steps = math.ceil(config["train"]["epochs"] * sampler["num_rows"] / sampler["rows_per_step"])
    status = exit_status(run_dir)
    return Progress(
        has_started=config is not None or status is not None,
        saved_step=state["step"] if state else 0,
        max_steps=max_steps or None,
        exit_status=status,
        lines=read_lines(run_dir / "metrics.jsonl"),
        is_evaluated=not (state or {}).get("evaluation_due") or (last / "evaluation.json").exists(),
    )


def read_curriculum(run_dir: Path) -> Progress:
    """Of runs one after the other: steps and metrics are those of the newest that is over, whose checkpoints it shows."""
    state = read_json_if_there(run_dir / "checkpoints" / "last" / "state.json")
    saved_step = state["step"] if state else 0
    return Progress(
        has_started=True,
        saved_step=saved_step,
        max_steps=saved_step if (run_dir / "done.json").exists() else None,
        exit_status=exit_status(run_dir),
        lines=read_lines((run_dir / "checkpoints").resolve().parent / "metrics.jsonl"),
    )


def exit_status(run_dir: Path) -> int | None:
    """Of the last start; None while it runs, and if it was killed."""
    path = run_dir / "exit_status"
    return int(path.read_text()) if path.exists() else None


def read_json_if_there(path: Path) -> dict | None:
    return read_json(path) if path.exists() else None


def read_lines(path: Path) -> list[dict]:
    """Whole lines only: the last one may be being written."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def state_of(progress: Progress, job: str | None = None) -> str:
    """A cell's state; `job` is RUNNING or QUEUED if something has it in hand."""
    if progress.is_done:
        return DONE
    if job:
        return job
    if progress.exit_status:
        return FAILED
    return STOPPED if progress.has_started else MISSING


def result_row(sweep: Sweep, cell: Cell, progress: Progress, state: str) -> dict[str, object]:
    """A cell in one row: what it sets, how far it is, its best, and all that was measured at that step."""
    best = progress.best_line(sweep) or {}
    measured = {key: value for key, value in best.items() if key not in ("step", sweep.metric)}
    return {
        "cell": cell.name,
        **{key: cell.overrides.get(key) for key in sweep.swept_keys},
        "state": state,
        "step": progress.step,
        "max_steps": progress.max_steps or cell.config.train.max_steps or None,
        "loss": progress.loss,
        sweep.metric: best.get(sweep.metric),
        "best_step": best.get("step"),
        **measured,
    }


def check_metric(sweep: Sweep, progresses: Iterable[Progress]) -> None:
    """ValueError if runs are done and none has logged the sweep's metric."""
    done = [progress for progress in progresses if progress.is_done]
    measured = {key for progress in done for line in progress.lines for key in line if key != "step"}
    if measured and sweep.metric not in measured:
        near = difflib.get_close_matches(sweep.metric, sorted(measured), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"metric {sweep.metric!r} was logged by no run that is done: there is no best; nearest logged: {near!r}"
        )
