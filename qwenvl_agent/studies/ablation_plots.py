"""The pictures of an ablation's report; every function draws one figure from a study and writes one PNG."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display: before pyplot
from matplotlib import pyplot

from qwenvl_agent.evaluation.episodes import is_allowed
from qwenvl_agent.studies.ablation import (
    LEVEL,
    OFFLINE,
    SHARES,
    Cell,
    Study,
    arm_interval,
    pooled_share,
)
from qwenvl_agent.studies.diagnosis import CLASSES, QUADRANTS, first_errors, quadrants

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#000000")
"""Okabe and Ito's, told apart by colour-blind readers too."""
MARKERS = "osD^vP*X"
FUNNEL = {
    "read strictly": lambda step: not step.error and not step.repairs,
    "read": lambda step: not step.error,
    "fits the schema": lambda step: not step.error and all(call.schema_ok for call in step.calls),
    "right tools": lambda step: [c.name for c in step.calls] == [c["name"] for c in step.expected],
    "allowed": lambda step: not step.error and all(is_allowed(call) for call in step.calls),
    "as good as the oracle's": lambda step: bool(step.calls) and all(call.optimal for call in step.calls),
    "same arguments": lambda step: [call.as_json() for call in step.calls] == step.expected,
}
"""Of turns with a reference; each is a share of all of them."""


def colour_of(study: Study, arm: str) -> str:
    return COLOURS[study.arms.index(arm) % len(COLOURS)]


def save(figure, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def plot_arms(path: Path, study: Study) -> Path:
    """The primary outcome: each training seed a dot, the arm's mean with its interval above them."""
    outcome = study.outcomes[0]
    scale, unit = (100, ", %") if outcome in SHARES else (1, "")
    figure, axis = pyplot.subplots(figsize=(7, 0.9 + 0.6 * len(study.by_arm)), layout="constrained")
    for y, (arm, cells) in enumerate(study.by_arm.items()):
        interval, colour = arm_interval(cells, outcome), colour_of(study, arm)
        spans = bars(interval, scale)
        axis.errorbar(scale * interval.value, y, xerr=spans, fmt="D", color=colour, capsize=4, markersize=7, zorder=3)
        means = [scale * cell.mean(outcome) for cell in cells.values()]
        axis.scatter(means, [y + 0.22] * len(means), s=22, color=colour, alpha=0.55)
    axis.set_yticks(range(len(study.by_arm)), labels=list(study.by_arm))
    axis.set_ylim(len(study.by_arm) - 0.5, -0.5)
    axis.set(xlabel=f"{study.text_of(outcome)}{unit} (diamond: mean and 95 % over missions; dots: training seeds)")
    axis.set(title=f"{study.text_of(outcome)}, by arm")
    axis.grid(axis="x", alpha=0.3)
    return save(figure, path)


def plot_forest(path: Path, study: Study) -> Path:
    """Differences of shares against the baseline: thick, of these trained models; thin, with training seeds."""
    shown = [one for one in study.contrasts if one.outcome in SHARES]
    figure, axis = pyplot.subplots(figsize=(8, 1.1 + 0.42 * len(shown)), layout="constrained")
    for y, one in enumerate(shown):
        colour = colour_of(study, one.arm)
        if not math.isnan(one.over_seeds.low):
            low, high = (100 * bound for bound in (one.over_seeds.low, one.over_seeds.high))
            axis.plot((low, high), (y, y), color=colour, linewidth=1.1, zorder=2)
            axis.plot((low, high), (y, y), "|", color=colour, markersize=7, zorder=2)
        axis.plot(
            (100 * one.difference.low, 100 * one.difference.high), (y, y), color=colour, linewidth=4.5, alpha=0.55
        )
        fill = colour if one.p_models_holm < LEVEL else "white"
        axis.plot(100 * one.difference.value, y, "o", color=colour, markerfacecolor=fill, markersize=7, zorder=4)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(shown)), labels=[f"{study.text_of(one.outcome)}: {one.arm}" for one in shown], fontsize=8)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.set(xlabel=f"arm minus {study.baseline}, percentage points", title=f"Differences from {study.baseline}")
    axis.grid(axis="x", alpha=0.3)
    return save(figure, path)


def plot_curves(path: Path, study: Study) -> Path:
    """Training loss of all supervised tokens and of the calls; a line a training seed."""
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, key in zip(axes, ("train/loss", "train/loss_part/call"), strict=True):
        for arm, cells in study.by_arm.items():
            for i, cell in enumerate(cells.values()):
                points = [(line["step"], line[key]) for line in cell.lines if key in line]
                label = arm if i == 0 else None
                axis.plot(
                    *zip(*points, strict=True) if points else ((), ()),
                    color=colour_of(study, arm),
                    label=label,
                    alpha=0.8,
                )
        axis.set(xlabel="optimizer step", ylabel="nats a token", title=key, yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize="small")
    return save(figure, path)


def plot_funnel(path: Path, study: Study) -> Path:
    """Shares of all turns that pass each stage, with intervals over missions."""
    figure, axis = pyplot.subplots(figsize=(9, 4), layout="constrained")
    width = 0.8 / max(1, len(study.by_arm))
    for i, (arm, cells) in enumerate(study.by_arm.items()):
        shares = [pooled_share(cells, holds, has_reference) for holds in FUNNEL.values()]
        places = [x + (i - (len(study.by_arm) - 1) / 2) * width for x in range(len(FUNNEL))]
        heights = [100 * share.value for share in shares]
        spans = list(zip(*(bars(share, 100) for share in shares), strict=True))
        lows, highs = [
            [pair[0][0] for pair in zip(*spans, strict=True)],
            [pair[1][0] for pair in zip(*spans, strict=True)],
        ]
        axis.bar(
            places,
            heights,
            width * 0.92,
            yerr=(lows, highs),
            color=colour_of(study, arm),
            label=arm,
            error_kw={"elinewidth": 0.9},
        )
    axis.set_xticks(range(len(FUNNEL)), labels=[textwrap.fill(name, 12) for name in FUNNEL], fontsize=8)
    axis.set(xlabel="a turn passes", ylabel="% of all turns", ylim=(0, 104))
    figure.suptitle("How far turns come, by arm")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.13))
    return save(figure, path)


def has_reference(step) -> bool:
    return step.expected is not None


def plot_quadrants(path: Path, study: Study) -> Path:
    """Turns by thought and action, of each arm."""
    counts = {arm: quadrants(study.world, steps_of(cells)) for arm, cells in study.by_arm.items()}
    names = (*QUADRANTS, "uncovered")
    texts = (
        "both right",
        "thought right, action wrong",
        "thought wrong, action right",
        "both wrong",
        "no readable plan",
    )
    return stacked(
        path,
        counts,
        names,
        texts,
        ("#009e73", "#e69f00", "#56b4e9", "#d55e00", "#c8c8c8"),
        "% of turns",
        "Thought and action of turns",
    )


def plot_first_errors(path: Path, study: Study) -> Path:
    """Failed episodes by the class of their first error, of each arm."""
    counts = {
        arm: first_errors(study.world, [record for cell in cells.values() for record in cell.missions.values()])
        for arm, cells in study.by_arm.items()
    }
    colours = ("#d55e00", "#0072b2", "#e69f00", "#cc79a7", "#009e73", "#8c8c8c", "#dddddd")
    return stacked(
        path,
        counts,
        (*CLASSES, "none"),
        (*CLASSES, "none found"),
        colours,
        "% of failed episodes",
        "Failed episodes by their first error",
    )


def stacked(
    path: Path, counts: dict[str, dict[str, int]], names: Sequence[str], texts, colours, label: str, title: str
) -> Path:
    """A bar of shares for each arm; its number of cases stands behind it."""
    figure, axis = pyplot.subplots(figsize=(8.5, 1.5 + 0.45 * len(counts)), layout="constrained")
    for y, numbers in enumerate(counts.values()):
        total, left = sum(numbers.values()), 0.0
        for name, colour in zip(names, colours, strict=True):
            share = 100 * numbers[name] / total if total else 0.0
            axis.barh(y, share, left=left, color=colour, height=0.68)
            if share >= 7:
                axis.text(left + share / 2, y, f"{share:.0f}", ha="center", va="center", fontsize=8, color=ink(colour))
            left += share
        axis.text(101, y, f"n = {total}", va="center", fontsize=8)
    axis.set_yticks(range(len(counts)), labels=list(counts))
    axis.set_ylim(len(counts) - 0.5, -0.5)
    axis.set(xlabel=label, xlim=(0, 113), title=title)
    axis.set_xticks(range(0, 101, 20))
    for text, colour in zip(texts, colours, strict=True):
        axis.bar(0, 0, color=colour, label=text)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    return save(figure, path)


def ink(background: str) -> str:
    """Black or white, whichever is read better on it."""
    return "black" if sum(matplotlib.colors.to_rgb(background)) > 1.8 else "white"


def plot_association(path: Path, study: Study) -> Path:
    """Offline figures of each cell against its success, a dot a cell."""
    figure, axes = pyplot.subplots(1, len(OFFLINE), figsize=(11, 3.6), layout="constrained", sharey=True)
    for axis, (name, offline) in zip(axes, OFFLINE.items(), strict=True):
        for arm, cells in study.by_arm.items():
            points = [(offline(cell), 100 * cell.mean("success")) for cell in cells.values()]
            points = [point for point in points if point[0] is not None]
            marker = MARKERS[study.arms.index(arm) % len(MARKERS)]
            axis.plot(
                *zip(*points, strict=True) if points else ((), ()), marker, color=colour_of(study, arm), label=arm
            )
        unit = "nats a token" if "loss" in name else "share"
        axis.set(xlabel=f"held-out rows: {name.replace('_', ' ')}, {unit}")
        axis.grid(alpha=0.3)
    figure.suptitle("Held-out rows against mission success, a dot a cell")
    axes[0].set(ylabel="mission success, %")
    axes[-1].legend(fontsize="small")
    return save(figure, path)


def steps_of(cells: dict[int, Cell]) -> list:
    return [step for cell in cells.values() for record in cell.missions.values() for step in record.steps]


def bars(interval, scale: float = 1.0) -> tuple[list[float], list[float]]:
    """Distances from the value to its bounds, as matplotlib wants them; 0 where there are none."""
    distances = (interval.value - interval.low, interval.high - interval.value)
    return tuple([0.0 if math.isnan(d) else scale * max(0.0, d)] for d in distances)
