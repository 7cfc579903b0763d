"""The plan of a curriculum: for each of its runs what it begins with, rows, steps, peak memory, and hours at a measured rate.

qwenvl-agent plan --config configs/safari_2b_curriculum.json --gpu-gb 24
qwenvl-agent plan --config configs/safari_2b_curriculum.json --gpu-gb 24 --measured runs/safari_2b
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qwenvl_agent.config import Config
from qwenvl_agent.data.dataset import RowDataset
from qwenvl_agent.inference.load import find_run
from qwenvl_agent.planning.vram import GIB, Architecture, Plan, measure_row
from qwenvl_agent.training.curriculum import PlannedRun, made_sources

NUM_MEASURED = 32
"""Rows whose tokens are counted for a mean."""


@dataclass(frozen=True)
class Rate:
    """What was measured of an earlier run."""

    run: str
    tokens_per_s: float


@dataclass(frozen=True)
class Line:
    """One run of the curriculum, as planned."""

    name: str
    begins_with: str
    data: str
    num_rows: int | None
    """To train on; None before they are recorded or made."""
    num_steps: int | None
    hours: float | None
    """Of training alone; None without a measured rate."""
    rate: str
    """The run that `hours` goes by."""
    plan: Plan


def measured_rate(path: Path, config: Config) -> Rate:
    """Of a run of the same base and method; ValueError if it has logged nothing, or is of another."""
    source = find_run(path)
    assert source.run
    theirs, ours = source.config.model, config.model
    if (theirs.path, theirs.method) != (ours.path, ours.method) and not theirs.init_from:
        raise ValueError(
            f"{path} was measured with {theirs.path}, {theirs.method}, and the plan is for {ours.path}, {ours.method}: its rate "
            "says nothing here; name a run of that model"
        )
    lines = [json.loads(line) for line in (source.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [line["train/tokens_per_s"] for line in lines if "train/tokens_per_s" in line]
    rates = rates[1:] or rates  # the first steps start things up
    if not rates:
        raise ValueError(f"{path} has logged no train/tokens_per_s: there is no rate; name a run that has trained")
    return Rate(str(path), len(rates) / sum(1 / rate for rate in rates))


def rate_for(run: PlannedRun, measured: Path | None) -> Rate | None:
    """Of the run that was named, else what this run itself has logged until now."""
    if measured:
        return measured_rate(measured, run.config)
    if (run.config.run_dir / "checkpoints").is_dir():
        return measured_rate(run.config.run_dir, run.config)
    return None


def present_sources(run: PlannedRun) -> Config:
    """Without the data that will be made: its rows are as long as those of its world are."""
    made = made_sources(run)
    sources = tuple(source for source in run.config.data.sources if source not in made)
    return replace(run.config, data=replace(run.config.data, sources=sources))


def num_steps(config: Config, num_rows: int | None, num_gpus: int) -> int | None:
    train = config.train
    if train.max_steps:
        return train.max_steps
    rows_per_step = train.batch_size * train.accumulation * num_gpus
    return None if num_rows is None else math.ceil(train.epochs * num_rows / rows_per_step)


def mean_tokens(rows: RowDataset, config: Config, arch: Architecture, count_tokens: Callable[[str], float]) -> float:
    """Of some rows, evenly spread."""
    step = max(1, len(rows) // NUM_MEASURED)
    lengths = [measure_row(rows[i], config, arch, count_tokens).tokens for i in range(0, len(rows), step)]
    return sum(lengths) / len(lengths)


def describe_data(run: PlannedRun) -> str:
    """Its sources with their weights, and whether they are there."""
    made, parts = made_sources(run), []
    for source in run.config.data.sources:
        state = "" if Path(source.path).exists() or "*" in source.path else " (to be recorded)"
        state = " (to be made)" if source in made and state else state
        parts.append(f"{source.path}{state}" + (f" x {source.weight:g}" if source.weight != 1 else ""))
    return ", ".join(parts)


def describe_gate(run: PlannedRun) -> str:
    gate = run.stage.gate
    if not gate or not run.is_last:
        return ""
    bounds = [f">= {gate.least:g}"] * (gate.least > -1e9) + [f"<= {gate.most:g}"] * (gate.most < 1e9)
    more = f", else up to {gate.times} x {gate.more_steps} steps more" if gate.more_steps else ""
    return (
        f"after {run.config.name}: {gate.metric} {' and '.join(bounds)}{more}, else {gate.otherwise.replace('_', ' ')}"
    )


def as_json(config: Config, lines: Sequence[Line], gates: Sequence[str], gpu_gb: float) -> dict:
    return {
        "config": config.name,
        "gpu_gb": gpu_gb,
        "gpus": lines[0].plan.num_gpus,
        "fits": all(line.plan.fits(gpu_gb) for line in lines),
        "stages": [
            {
                "name": line.name,
                "begins_with": line.begins_with,
                "data": line.data,
                "rows": line.num_rows,
                "steps": line.num_steps,
                "hours": line.hours,
                "rate_of": line.rate,
                "peak_bytes": line.plan.total,
                "row_source": line.plan.row.source,
                "fits": line.plan.fits(gpu_gb),
            }
            for line in lines
        ],
        "gates": [gate for gate in gates if gate],
    }


def show(config: Config, lines: Sequence[Line], gates: Sequence[str], gpu_gb: float) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{config.name}: {len(lines)} runs, one after the other, on {lines[0].plan.num_gpus} x {gpu_gb:g} GB; nothing is "
        "started"
    )
    table = Table("run", "begins with", "rows", "steps", "peak, GiB", "hours")
    for column in table.columns[2:]:
        column.justify = "right"
    for line in lines:
        table.add_row(line.name, line.begins_with, *cells_of(line, gpu_gb))
    console.print(table)
    for line in lines:
        console.print(f"{line.name}: {line.data}", style="dim")
    for gate in filter(None, gates):
        console.print(gate)
    console.print(total_of(lines))


def cells_of(line: Line, gpu_gb: float) -> tuple[str, str, str, str]:
    rows = "?" if line.num_rows is None else f"{line.num_rows:,}"
    steps = "?" if line.num_steps is None else f"{line.num_steps:,}"
    peak = f"{line.plan.total / GIB:.1f}" + ("" if line.plan.fits(gpu_gb) else " !")
    return rows, steps, peak, "?" if line.hours is None else f"{line.hours:.2g}"


def total_of(lines: Sequence[Line]) -> str:
    """Hours in all as far as they are known, and what is not reckoned."""
    steps = [line.num_steps for line in lines]
    known = [line.hours for line in lines if line.hours is not None]
    counted = f"{sum(filter(None, steps)):,} optimizer steps" + (
        ", and those of rows that are not there yet" * (None in steps)
    )
    if not known:
        return f"{counted}; hours: no rate was measured (--measured RUN, of the same model on the same machine)"
    missing = (
        f", without {len(lines) - len(known)} runs whose rate or rows are not known" if len(known) < len(lines) else ""
    )
    rates = ", ".join(sorted({line.rate for line in lines if line.rate}))
    return f"{counted}; {sum(known):.2g} hours of training by the rate of {rates}{missing}; evaluations and rollouts not counted"
