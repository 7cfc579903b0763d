"""Held-out suites of a world: kinds of missions that are played apart, each on seeds of its own out of those for reports.

A set of suites is a JSON file:

    {"goals": {"success_rate": {"least": 0.8}, "harm_rate": {"most": 0.02}},
     "suites": {"far": {"title": "a target far away", "rules": {"min_distance": 13}, "seed_start": 2520000}, ...}}

`rules` go over those that are evaluated; what stands there of a rule counts, so a run's own game is played with one thing
made harder. `times` multiplies a rule instead. A suite's goals go over the set's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from qwenvl_agent.settings import Range, build, check_values, read_values

SEEDS_OF_A_SUITE = 10_000


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a figure is to be: `least`, `most`, or both; of `of`, the share of the same figure of that suite."""

    least: Annotated[float, Range(-1e9, 1e9, "no figure is so")] = -1e9
    """The figure is met from here."""
    most: Annotated[float, Range(-1e9, 1e9, "no figure is so")] = 1e9
    """Up to here."""
    of: str = ""
    """A suite of the set: limits are shares of its figure."""

    def is_met(self, value: float, whole: float = 1.0) -> bool:
        return self.least * whole <= value <= self.most * whole


@dataclass(frozen=True, kw_only=True)
class HeldOutSuite:
    """One kind of missions."""

    title: str
    """What is hard about it, in a few words."""
    seed_start: Annotated[int, Range(0, 1e12, "there are no such seeds")]
    """Of its SEEDS_OF_A_SUITE seeds, which no other suite has."""
    rules: dict = field(default_factory=dict)
    """Over the rules that are evaluated."""
    times: dict = field(default_factory=dict)
    """Rule -> factor of its value; the result is a whole number."""
    unseen: str = ""
    """The rule whose value no recording of a run shows, if it is what it claims (`World.seen_in`)."""
    goals: dict = field(default_factory=dict)
    """Over those of the set."""

    @property
    def seeds(self) -> range:
        return range(self.seed_start, self.seed_start + SEEDS_OF_A_SUITE)

    def rules_over(self, rules: Mapping[str, object]) -> dict[str, object]:
        """All rules, from those that are evaluated."""
        scaled = {name: round(factor * float(str(rules[name]))) for name, factor in self.times.items()}
        return {**rules, **scaled, **self.rules}

    def goals_over(self, goals: Mapping[str, object]) -> dict[str, Goal]:
        return {metric: build(Goal, values, f"goals.{metric}") for metric, values in {**goals, **self.goals}.items()}


@dataclass(frozen=True, kw_only=True)
class SuiteSet:
    """Suites that are played by one command and stand in one table."""

    suites: Mapping[str, HeldOutSuite]
    goals: Mapping[str, object] = field(default_factory=dict)
    """Metric -> {"least", "most", "of"}: for every suite that has none of its own for it."""

    def goals_of(self, name: str) -> dict[str, Goal]:
        return self.suites[name].goals_over(self.goals)


@dataclass(frozen=True, kw_only=True)
class _File:
    suites: dict
    goals: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_values(self, "")


def read_suites(path: Path, report_seeds: range) -> SuiteSet:
    """The set in a JSON file; ValueError for seeds that another evaluation or a training has, and for goals of nothing."""
    file = build(_File, read_values(path, what="set of suites"), str(path))
    suites = {name: build(HeldOutSuite, values, f"{path}: {name}") for name, values in file.suites.items()}
    found = SuiteSet(suites=suites, goals=file.goals)
    check_seeds(path, suites, report_seeds)
    for name in suites:
        for metric, goal in found.goals_of(name).items():
            if goal.of and goal.of not in suites:
                raise ValueError(
                    f"{path}: {name}: the goal of {metric} is a share of the suite {goal.of!r}, which is none of the set: "
                    f"it could never be met; use one of {', '.join(suites)}"
                )
    return found


def check_seeds(path: Path, suites: Mapping[str, HeldOutSuite], report_seeds: range) -> None:
    blocks = sorted((suite.seeds.start, suite.seeds.stop, name) for name, suite in suites.items())
    for (_, stop, name), (start, _, other) in zip(blocks, blocks[1:], strict=False):
        if start < stop:
            raise ValueError(
                f"{path}: {other} begins at seed {start}, and {name} ends at {stop}: both would play the same missions; set "
                f"seed_start to {stop} or more"
            )
    for start, stop, name in blocks:
        if start < report_seeds.start or stop > report_seeds.stop:
            raise ValueError(
                f"{path}: {name} has the seeds {start} to {stop - 1}, and those for reports are {report_seeds.start} to "
                f"{report_seeds.stop - 1}: missions of a training would count as held out; correct seed_start"
            )
