"""What a suite is: which cases it asks, what a record of one is, its metrics, and the words for people.

Everything that an evaluation, a report, a comparison or a training must know of a suite is an attribute or a method
here; nothing else asks for a suite's name.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from qwenvl_agent.config import Config, EvalConfig
from qwenvl_agent.records import EpisodeRecord, StepRecord
from qwenvl_agent.schema import NO_ANSWER, Policy, Row
from qwenvl_agent.statistics import wilson
from qwenvl_agent.worlds.world import Metrics

Say = Callable[[str], None]
OnRecords = Callable[[Sequence], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a command says about one evaluation; what is not given has no value, and the suite's default counts."""

    baseline: str = ""
    """Which of the suite's own policies answers, where no policy is given."""
    episodes: int | None = None
    seed_start: int | None = None
    world: Mapping[str, object] = field(default_factory=dict)
    """Rules over those of `eval.world`; they are in the suite already."""
    oracle: Mapping[str, object] = field(default_factory=dict)
    """Settings of the reference."""
    counterfactual: str = ""
    rows: int | None = None
    data: Path | None = None
    split: str = ""
    unit: str = ""
    """Of the places of `data`, as in a source; so are the next two."""
    box_unit: str = ""
    box_order: str = ""
    layout: str = ""
    pictures: Path | None = None
    """Where the picture names of the data start."""

    def given(self) -> list[str]:
        """Names of the options that say something; `baseline` is no option of a suite."""
        return [name for name, value in vars(self).items() if name != "baseline" and value not in (None, "", {})]


@dataclass(frozen=True)
class Work:
    """What an evaluation will ask, known before anything is asked."""

    cases: Sequence
    """Seeds, rows or screens."""
    about: dict
    """What decides the records, for the result and for going on after an interruption."""
    answer: Callable[..., list]
    """(cases, on_records, picture_dir, time_limit_s) -> records, in the order of the cases; a limit leaves some out."""
    place: Callable[[int, object], int | None]
    """(number of a record, the record) -> place of its case; None if it is none of these cases."""
    told: Callable[[Sequence], dict] = lambda records: {}
    """What the result says about itself besides, once the records are there."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation inside training gives back."""

    scalars: dict[str, float]
    """For TensorBoard, slash-grouped: `rollout/success_rate`, `eval/argument_accuracy`, ... What has no value (nothing
    was tried) is absent."""
    episodes: list[EpisodeRecord] = field(default_factory=list)
    rows: list = field(default_factory=list)
    failure: str = ""
    """Of the first case, if every one ended by no doing of the policy's: then no rate of them is among the scalars."""
    cut_short: str = ""
    """What the time limit did to the episodes; "" if all came to their own end."""


@dataclass(frozen=True)
class TurnsView:
    """A record on the page of turns."""

    title: str
    facts: str
    steps: Sequence[StepRecord]
    error: str = ""


class Suite:
    """One suite. `metrics` come from records alone, so that a result can be scored again without a model."""

    name: str
    """In result folders and on pages."""
    record: ClassVar[type]
    """What a line of records.jsonl is: `to_json`, `from_json`."""
    title: str
    intro: str
    """Of its page."""
    expected: ClassVar[str] = "the label"
    """What a turn is held against."""
    case: ClassVar[str] = "row"
    cases: ClassVar[str] = "rows"
    paired_by: ClassVar[str] = "dataset_hash"
    """Key of `about` in which two results must agree to be tested against each other."""
    success_metric: ClassVar[str] = "argument_accuracy"
    """The share of the cases that `is_success` tells, or what comes next to it."""
    group: ClassVar[str] = ""
    """Of its scalars inside training; empty: it cannot be played there."""
    options: ClassVar[tuple[str, ...]] = ("rows",)
    """Of `Options`, those that mean something to it."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Of these, those without which there is nothing to measure."""
    page: ClassVar[str] = "turns"
    """Of `report.PAGES`."""
    not_shares: ClassVar[tuple[str, ...]] = ()
    """Metrics that are no share of 1."""
    labels: Mapping[str, tuple[str, str]]
    """Metric -> (what it is called, what it means)."""
    columns: Mapping[str, str]
    """Metrics of a comparison in the terminal, with their headings; the first has the number of cases."""
    outcomes: Mapping[str, str]
    """How a case may end, in words, in the order in which they are shown."""
    good: ClassVar[frozenset[str]] = frozenset()
    """Outcomes that are successes."""

    # records and their metrics

    def measure(self, records: Sequence) -> Metrics:
        raise NotImplementedError

    def metrics(self, records: Sequence) -> Metrics:
        """With `error_rate`, beside the rate that stands first: cases that ended by no doing of the policy's."""
        (first, value), *others = self.measure(records).items()
        failed = sum(map(bool, map(self.failure, records)))
        return dict([(first, value), ("error_rate", wilson(failed, len(records))), *others])

    def case_of(self, record) -> str:
        """The case's name, by which two results find the same one."""
        raise NotImplementedError

    def pairing(self, about: dict) -> object:
        """What a result must share with another to be tested against it."""
        return about[self.paired_by]

    def outcome(self, record) -> str:
        """One of `outcomes`."""
        raise NotImplementedError

    def is_success(self, record) -> bool:
        return self.outcome(record) in self.good

    def failure(self, record) -> str:
        """Why a case ended by no doing of the policy's (a crash of the world, a server without an answer); "" if not."""
        return last_line(record.text) if record.error == NO_ANSWER else ""

    def common_failure(self, records: Sequence) -> str:
        """The first cause if every case failed, so that no figure says anything about the policy; "" if not."""
        causes = [self.failure(record) for record in records]
        return causes[0] if causes and all(causes) else ""

    def view(self, record) -> TurnsView:
        """Of a suite whose page is that of turns."""
        raise NotImplementedError

    # asking

    def prepare(self, config: Config, policy: Policy | None, options: Options, say: Say) -> Work:
        """What to ask of the policy, or of `options.baseline` where there is none; ValueError if there is nothing."""
        raise NotImplementedError

    def check_options(self, options: Options) -> None:
        """ValueError for options that would change nothing, or lack."""
        given = options.given()
        for name in given:
            if name not in self.options:
                raise ValueError(
                    f"--{name.replace('_', '-')} with --suite {self.name}: it would change nothing; leave it out (of this "
                    f"suite are {', '.join('--' + one.replace('_', '-') for one in self.options)})"
                )
        for name in self.needs:
            if name not in given:
                raise ValueError(f"--suite {self.name} without --{name}: there is nothing to measure on; give it")

    def pick_baseline(self, name: str, known: Mapping[str, Callable[[], Policy]]) -> Policy:
        if name not in known:
            choices = f"use {', '.join(known)}" if known else "use --run or --model"
            raise ValueError(f"--policy {name} does not play the suite {self.name}: {choices}")
        return known[name]()

    # inside training

    def check(self, config: Config) -> None:
        """ValueError, before anything is loaded, if this config's training cannot be judged by the suite."""

    def check_held_out(self, held_out: Sequence[Row]) -> None:
        """ValueError, before a model is loaded, if the data holds nothing out that the suite needs."""

    def evaluate(
        self, policy: Policy, cfg: EvalConfig, *, held_out: Sequence[Row], history_steps: int, time_limit_s: float
    ) -> Evaluation:
        """Up to `cfg.episodes` cases; what is not begun in time is left out and what is begun counts."""
        return Evaluation({})

    def success(self, scalars: Mapping[str, float]) -> float:
        """By which checkpoints are ordered for `best`; 0 where nothing was measured."""
        return scalars.get(f"{self.group}/{self.success_metric}", 0.0)

    def could_measure(self, scalars: Mapping[str, float]) -> bool:
        """Whether an evaluation says anything about the policy: not every case ended with an error."""
        return scalars.get(f"{self.group}/error_rate") != 1.0


def last_line(text: str) -> str:
    """Of a traceback the error, of anything else all of it."""
    return text.strip().rpartition("\n")[2] or "no reason is given"


def pick_rows(rows: Sequence, num_rows: int) -> list:
    """`num_rows` rows spread evenly over all, always the same; all if there are fewer."""
    num_rows = min(num_rows, len(rows))
    return [rows[i * len(rows) // num_rows] for i in range(num_rows)]


def predict_in_time(
    policy: Policy,
    cases: Sequence,
    batch_size: int,
    time_limit_s: float,
    predict: Callable[[Policy, Sequence], list],
    on_records: OnRecords = lambda records: None,
) -> list:
    """`predict` batch by batch; none begins after the time limit. `on_records` gets the records of each batch."""
    deadline = time.monotonic() + time_limit_s
    records: list = []
    while len(records) < len(cases) and time.monotonic() < deadline:
        batch = predict(policy, cases[len(records) : len(records) + batch_size])
        records += batch
        on_records(batch)
    return records


def work_on_rows(
    policy: Policy, cases: Sequence, about: dict, batch_size: int, predict: Callable[[Policy, Sequence], list]
) -> Work:
    """One answer to each row or screen; records come in the order of the cases."""

    def answer(rest: Sequence, on_records: OnRecords, picture_dir: Path | None, time_limit_s: float | None) -> list:
        limit_s = float("inf") if time_limit_s is None else time_limit_s
        return predict_in_time(policy, rest, batch_size, limit_s, predict, on_records)

    return Work(
        cases,
        about | {"num_rows": len(cases)},
        answer,
        place=lambda number, record: number if number < len(cases) else None,
        told=lambda records: {"num_rows": len(records)},
    )
