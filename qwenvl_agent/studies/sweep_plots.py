"""A sweep's pictures: every cell's curves, and the metric against what was varied."""

import json
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display: before pyplot
from matplotlib import pyplot

from qwenvl_agent.studies.cells import Sweep, short_keys
from qwenvl_agent.studies.progress import DONE, Progress

MAX_LEGEND = 12
MARKERS = "osD^vP*X"
LOG_RATIO = 4
"""Values that span at least this factor stand on a logarithmic axis: learning rates, ranks."""


def plot_curves(path: Path, sweep: Sweep, progresses: dict[str, Progress]) -> None:
    """Training loss and the sweep's metric over the steps, a line a cell, coloured in the cells' order."""
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    colours = pyplot.get_cmap("viridis")
    for axis, key in zip(axes, ("train/loss", sweep.metric), strict=True):
        for i, (name, progress) in enumerate(progresses.items()):
            points = [(line["step"], line[key]) for line in progress.lines if key in line]
            colour = colours(i / max(1, len(progresses) - 1) * 0.9)
            # One evaluation is a point, which a line alone would not show.
            axis.plot(*zip(*points, strict=True) if points else ((), ()), marker=".", color=colour, label=name)
        axis.set(xlabel="optimizer step", ylabel="nats a token" if key == "train/loss" else key, title=key)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    legend_beside(figure, axes[0].get_legend_handles_labels())
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_metric(path: Path, sweep: Sweep, rows: Sequence[dict], best: dict) -> None:
    """Each cell's best value of the metric as a dot (hollow until the cell is done) over the key with most values; a
    line joins the cells that agree in all other keys, through the mean of those that differ in a seed alone."""
    rows = [row for row in rows if row[sweep.metric] is not None]
    x_key, labels = choose_x(sweep, rows), short_keys(sweep.swept_keys)
    others = [key for key in sweep.swept_keys if key != x_key and not is_seed(key)]
    places = {row["cell"]: row[x_key] if x_key else i for i, row in enumerate(rows)}
    figure, axis = pyplot.subplots(figsize=(11, 5), layout="constrained")
    groups: dict[str, list[dict]] = {}
    for row in rows:
        label = ", ".join(f"{labels[key]}={shown(row[key])}" for key in others) if x_key else ""
        groups.setdefault(label, []).append(row)
    colours = pyplot.get_cmap("viridis")
    for i, ((label, group), marker) in enumerate(zip(groups.items(), cycle(MARKERS))):
        colour = colours(i / max(1, len(groups) - 1) * 0.9)
        if x_key:
            axis.plot(*mean_line(sweep, group, x_key), color=colour, alpha=0.7)
        for row in group:
            fill = colour if row["state"] == DONE else "none"
            axis.plot(places[row["cell"]], row[sweep.metric], marker, color=colour, markerfacecolor=fill)
        axis.plot([], [], marker=marker, color=colour, label=label)
    axis.plot(places[best["cell"]], best[sweep.metric], "o", markersize=16, color="red", fillstyle="none", label="best")
    label_x(axis, x_key, places)
    better = "higher" if sweep.goal == "max" else "lower"
    axis.set(ylabel=sweep.metric, title=f"{sweep.name}: best {sweep.metric} of each cell ({better} is better)")
    axis.grid(alpha=0.3)
    legend_beside(figure, axis.get_legend_handles_labels())
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def choose_x(sweep: Sweep, rows: Sequence[dict]) -> str | None:
    """The numeric key with most values, the last of those; None: no key is numeric."""
    candidates: list[tuple] = []
    for key in sweep.swept_keys:
        values = {json.dumps(row[key]) for row in rows}
        is_number = all(isinstance(row[key], int | float) and not isinstance(row[key], bool) for row in rows)
        if is_number and len(values) > 1 and not is_seed(key):
            candidates.append((len(values), len(candidates), key))
    return max(candidates)[-1] if candidates else None


def is_seed(key: str) -> bool:
    """Cells that differ in it alone are repetitions of one experiment."""
    return key.rpartition(".")[2] == "seed"


def mean_line(sweep: Sweep, group: Sequence[dict], x_key: str) -> tuple[list[float], list[float]]:
    """x and mean y of the cells at each x."""
    values: dict[float, list[float]] = {}
    for row in group:
        values.setdefault(row[x_key], []).append(row[sweep.metric])
    xs = sorted(values)
    return xs, [sum(values[x]) / len(values[x]) for x in xs]


def label_x(axis, x_key: str | None, places: dict[str, float]) -> None:
    """Ticks at the values that were tried, or at the cells."""
    ticks = sorted(set(places.values()))
    if x_key and ticks[0] > 0 and ticks[-1] / ticks[0] >= LOG_RATIO:
        axis.set_xscale("log")
    axis.set_xticks(ticks, minor=False, labels=[f"{tick:g}" for tick in ticks] if x_key else list(places))
    axis.set_xticks([], minor=True)
    axis.set_xlabel(x_key or "cell")
    if not x_key:
        axis.tick_params("x", rotation=30)


def legend_beside(figure, entries: tuple[list, list]) -> None:
    """At the right of the figure; many cells are counted instead of listed."""
    handles, labels = zip(*[(h, label) for h, label in zip(*entries, strict=True) if label], strict=True)
    if len(labels) > MAX_LEGEND:
        title = f"the first {MAX_LEGEND} of {len(labels)}"
        handles, labels = handles[:MAX_LEGEND], labels[:MAX_LEGEND]
    else:
        title = None
    figure.legend(handles, labels, loc="outside right upper", fontsize="small", title=title)


def shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
