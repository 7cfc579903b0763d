"""An ablation's results: arms x training seeds, each cell a run with its evaluations; what may be compared, compared.

Arms are paired twice: by training seed (the same rows in the same order) and by mission (the same world). All figures
come from records and from what the runs wrote down, so a report needs no model. What cannot be paired is left out by
`usable`, with the reason in words; nothing is computed from it.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from qwenvl_agent.evaluation.episodes import is_allowed, judge
from qwenvl_agent.evaluation.results import read_result
from qwenvl_agent.evaluation.step_metrics import RowRecord
from qwenvl_agent.evaluation.suites import suite_of
from qwenvl_agent.files import read_json
from qwenvl_agent.records import EpisodeRecord
from qwenvl_agent.statistics import Interval, bootstrap_mean, bootstrap_ratio, holm, path_efficiency
from qwenvl_agent.studies.paired import (
    cohens_h,
    crossed_interval,
    detectable_difference,
    flip_test,
    least_p_value,
    missions_needed,
)
from qwenvl_agent.worlds import World

MISSIONS, ROWS, CONSTRAINED = "missions", "steps", "constrained"
"""Folders of a cell's evaluations."""
LEVEL = 0.05
EXACT_SEEDS = 6
"""Training seeds from which an exact test over seeds can reach LEVEL."""


def share_of_turns(holds: Callable) -> Callable[[EpisodeRecord], float]:
    """Outcome: the share of a mission's turns for which `holds(step)`; 0 for a mission without a turn."""
    return lambda record: sum(map(holds, record.steps)) / len(record.steps) if record.steps else 0.0


OUTCOMES: dict[str, Callable[[EpisodeRecord], float]] = {
    "success": lambda record: float(record.success),
    "progress": lambda record: record.progress,
    "turns": lambda record: float(record.turns),
    "efficiency": lambda r: path_efficiency(r.success, r.optimal_turns or r.turns, r.turns),
    "strict": share_of_turns(lambda step: not step.error and not step.repairs),
    "parsed": share_of_turns(lambda step: not step.error),
    "legal": share_of_turns(lambda step: not step.error and all(map(is_allowed, step.calls))),
    "optimal": share_of_turns(lambda step: bool(step.calls) and all(call.optimal for call in step.calls)),
    "written_chars": lambda r: sum(len(step.text) for step in r.steps) / len(r.steps) if r.steps else 0.0,
}
"""Of one mission; a number."""
OUTCOME_TEXT = {
    "success": "mission success",
    "progress": "share of the goals reached",
    "turns": "turns, failures with the turns they took",
    "efficiency": "success x optimal turns / turns",
    "strict": "turns read without any repair",
    "parsed": "turns read, repaired ones included",
    "legal": "turns whose calls the world allows",
    "optimal": "turns as good as the oracle's",
    "written_chars": "characters written a turn",
}
SHARES = frozenset(OUTCOMES) - {"turns", "written_chars"}


@dataclass(frozen=True)
class Cell:
    """One run and its evaluations, as found on disk."""

    name: str
    arm: str
    seed: int
    directory: Path
    state: str
    """Of the training: done, failed, missing ... as sweeps call it."""
    episodes: list[EpisodeRecord] = field(default_factory=list, repr=False)
    rows: list[RowRecord] = field(default_factory=list, repr=False)
    about: dict = field(default_factory=dict, repr=False)
    """What the missions' metrics.json says about itself; empty: not evaluated yet."""
    changed: dict[str, tuple[dict, list[EpisodeRecord]]] = field(default_factory=dict, repr=False)
    """By counterfactual, or CONSTRAINED: what it says about itself, and its episodes."""
    lines: list[dict] = field(default_factory=list, repr=False)
    """Of the run's metrics.jsonl."""
    data: dict = field(default_factory=dict, repr=False)
    """The run's data.json: hash and numbers of rows."""

    @cached_property
    def world(self) -> World:
        """In which the missions were played; a bare World where none was."""
        return suite_of(self.about).world if self.about else World()

    @cached_property
    def missions(self) -> dict[int, EpisodeRecord]:
        """By mission seed, judged."""
        return {record.seed: judge(self.world, record) for record in self.episodes}

    @property
    def argument_accuracy(self) -> float | None:
        """Share of the held-out rows whose calls are the label's; None: not evaluated yet."""
        right = [[call.as_json() for call in row.step.calls] == row.step.expected for row in self.rows]
        return sum(right) / len(right) if right else None

    @property
    def last(self) -> dict[str, float]:
        """The last logged value of everything that was logged."""
        return {key: value for line in self.lines for key, value in line.items()}

    def mean(self, outcome: str) -> float:
        return float(np.mean([OUTCOMES[outcome](record) for record in self.missions.values()]))


def read_cell(name: str, arm: str, seed: int, directory: Path, state: str, plays: Sequence[str]) -> Cell:
    """All that a run's folder holds by now; ValueError for a result that cannot be read."""
    results = {}
    for test in (MISSIONS, ROWS, *plays):
        if (directory / "eval" / test / "metrics.json").exists():
            results[test] = read_result(directory / "eval" / test)[:2]
    metrics, data = directory / "metrics.jsonl", directory / "data.json"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
    empty = ({"about": {}}, [])
    return Cell(
        name=name,
        arm=arm,
        seed=seed,
        directory=directory,
        state=state,
        episodes=results.get(MISSIONS, empty)[1],
        rows=results.get(ROWS, empty)[1],
        about=results.get(MISSIONS, empty)[0]["about"],
        changed={test: (results[test][0]["about"], results[test][1]) for test in plays if test in results},
        lines=[json.loads(line) for line in lines if line.endswith("\n")],
        data=read_json(data) if data.exists() else {},
    )


@dataclass(frozen=True)
class Contrast:
    """An arm against the baseline in one outcome: what is known, and None where nothing may be said."""

    arm: str
    baseline: str
    outcome: str
    seeds: tuple[int, ...]
    num_missions: int
    first: float
    second: float
    """Means of the arm and of the baseline, over the same seeds and missions."""
    difference: Interval
    """arm - baseline, bootstrapped over missions: of these trained models."""
    over_seeds: Interval
    """The same with training seeds as a source of chance too; NaN bounds with one seed."""
    p_models: float
    """Flip test over missions; McNemar's exact test with one training seed."""
    p_arms: float | None
    """Exact flip test over training seeds; None with fewer than EXACT_SEEDS, which could not reach LEVEL."""
    only_first: int
    only_second: int
    """Pairs (seed, mission) that one of the two alone solved; of a share that is no yes or no, was better in."""
    spread: float
    """Standard deviation between the baseline's training seeds; NaN with one."""
    effect: float | None
    """Cohen's h, of success."""
    missions_needed: int | None
    detectable: float | None
    """Of success: missions to show this difference, and the difference that these missions would show, power 0.8."""
    p_models_holm: float = math.nan
    p_arms_holm: float | None = None


def matrix(arm: dict[int, Cell], baseline: dict[int, Cell], outcome: str) -> tuple[np.ndarray, list[int], list[int]]:
    """(arm and baseline (2, S, M), training seeds, missions) of what both have; cells by training seed."""
    seeds = sorted(arm.keys() & baseline.keys())
    cells = [side[seed] for side in (arm, baseline) for seed in seeds]
    missions = sorted(set.intersection(*(set(cell.missions) for cell in cells))) if cells else []
    measure = OUTCOMES[outcome]
    values = [[[measure(side[s].missions[m]) for m in missions] for s in seeds] for side in (arm, baseline)]
    return np.array(values, dtype=float).reshape(2, len(seeds), len(missions)), seeds, missions


def contrast(arm: dict[int, Cell], baseline: dict[int, Cell], outcome: str, names: tuple[str, str]) -> Contrast | None:
    """None if the two have no training seed or no mission in common."""
    values, seeds, missions = matrix(arm, baseline, outcome)
    if not values.size:
        return None
    difference = values[0] - values[1]
    first, second = float(values[0].mean()), float(values[1].mean())
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    discordance = (only_first + only_second) / difference.size
    is_success = outcome == "success"
    return Contrast(
        arm=names[0],
        baseline=names[1],
        outcome=outcome,
        seeds=tuple(seeds),
        num_missions=len(missions),
        first=first,
        second=second,
        difference=bootstrap_mean(difference.mean(0)),
        over_seeds=crossed_interval(difference),
        # Sums, not means: whole numbers are flipped exactly.
        p_models=flip_test(difference.sum(0)),
        p_arms=flip_test(difference.sum(1)) if len(seeds) >= EXACT_SEEDS else None,
        only_first=only_first,
        only_second=only_second,
        spread=float(values[1].mean(1).std(ddof=1)) if len(seeds) > 1 else math.nan,
        effect=cohens_h(first, second) if is_success else None,
        missions_needed=missions_needed(first - second, discordance) if is_success else None,
        detectable=detectable_difference(len(missions), discordance) if is_success else None,
    )


@dataclass(frozen=True)
class Study:
    """The cells of an ablation and what it asks; `notes` are what a reader must know about missing or unequal cells."""

    name: str
    question: str
    baseline: str
    arms: tuple[str, ...]
    outcomes: tuple[str, ...]
    """The first is the primary one."""
    cells: tuple[Cell, ...]

    @cached_property
    def world(self) -> World:
        """Of the first usable cell: all are of one, or they are not compared."""
        return next((cell.world for cells in self.by_arm.values() for cell in cells.values()), World())

    def text_of(self, outcome: str) -> str:
        """What an outcome is called, in the world's own words where it has some."""
        return self.world.labels.goals if outcome == "progress" else OUTCOME_TEXT[outcome]

    @cached_property
    def judged(self) -> tuple[dict[str, dict[int, Cell]], list[str]]:
        """(arm -> training seed -> usable cell, notes)."""
        return usable(self)

    @property
    def by_arm(self) -> dict[str, dict[int, Cell]]:
        return self.judged[0]

    @property
    def notes(self) -> list[str]:
        return self.judged[1]

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """Every arm against the baseline in every outcome, with Holm's p-values (`adjust`)."""
        baseline = self.by_arm.get(self.baseline, {})
        found = [
            contrast(self.by_arm[arm], baseline, outcome, (arm, self.baseline))
            for outcome in self.outcomes
            for arm in self.arms
            if arm != self.baseline and arm in self.by_arm
        ]
        return adjust([one for one in found if one is not None])


def adjust(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """With Holm's p-values: the primary outcome, the first one, is a family, and all others together are another."""
    families: dict[bool, list[int]] = {}
    for i, one in enumerate(contrasts):
        families.setdefault(one.outcome == contrasts[0].outcome, []).append(i)
    adjusted = list(contrasts)
    for places in families.values():
        for i, p in zip(places, holm([contrasts[i].p_models for i in places]), strict=True):
            adjusted[i] = replace(adjusted[i], p_models_holm=p)
        tested = [i for i in places if contrasts[i].p_arms is not None]
        for i, p in zip(tested, holm([contrasts[i].p_arms for i in tested]), strict=True):
            adjusted[i] = replace(adjusted[i], p_arms_holm=p)
    return adjusted


def usable(study: Study) -> tuple[dict[str, dict[int, Cell]], list[str]]:
    """Cells that may be compared, by arm and training seed; and why others may not, or what is unequal."""
    notes, kept = [], []
    for cell in study.cells:
        if cell.state != "done":
            notes.append(f"{cell.name} is {cell.state}: it is in no figure")
        elif not cell.episodes:
            notes.append(f"{cell.name} is trained but has not played the missions: it is in no figure")
        else:
            kept.append(cell)
    kept = same(kept, "world", lambda cell: (cell.about.get("suite"), cell.about.get("world")), notes)
    kept = same(kept, "settings of the oracle", lambda cell: cell.about.get("oracle"), notes)
    by_arm: dict[str, dict[int, Cell]] = {}
    for arm in study.arms:
        cells = {cell.seed: cell for cell in kept if cell.arm == arm}
        if cells:
            by_arm[arm] = cells
    notes += (
        unknown_outcomes(study, kept)
        + unequal_seeds(by_arm)
        + unequal_missions(kept)
        + unequal_training(kept)
        + unequal_precision(kept)
    )
    if study.baseline not in by_arm:
        notes.append(f"the baseline {study.baseline} has no cell to compare with: no difference is computed")
    return by_arm, notes


def unknown_outcomes(study: Study, cells: Sequence[Cell]) -> list[str]:
    """Outcomes about which the world tells nothing, so that they are the same for all."""
    records = [record for cell in cells for record in cell.missions.values()]
    calls = [call for record in records for step in record.steps for call in step.calls]
    told = {
        "optimal": any(call.optimal is not None for call in calls),
        "legal": any(call.legal is not None for call in calls),
        "efficiency": any(record.optimal_turns is not None for record in records),
    }
    return [
        f"the world does not tell what {OUTCOME_TEXT[name]!r} rests on: of that outcome no difference can be seen"
        for name in study.outcomes
        if records and not told.get(name, True)
    ]


def same(cells: list[Cell], what: str, fact: Callable[[Cell], object], notes: list[str]) -> list[Cell]:
    """The cells that agree with most others in a fact without which missions cannot be paired."""
    facts = [json.dumps(fact(cell), sort_keys=True) for cell in cells]
    if len(set(facts)) <= 1:
        return cells
    common = Counter(facts).most_common(1)[0][0]
    for cell, value in zip(cells, facts, strict=True):
        if value != common:
            notes.append(f"{cell.name} was evaluated with another {what}: it is in no figure; evaluate it again")
    return [cell for cell, value in zip(cells, facts, strict=True) if value == common]


def unequal_seeds(by_arm: dict[str, dict[int, Cell]]) -> list[str]:
    seeds = {arm: sorted(cells) for arm, cells in by_arm.items()}
    notes = []
    if len({tuple(s) for s in seeds.values()}) > 1:
        shown = "; ".join(f"{arm}: {', '.join(map(str, s))}" for arm, s in seeds.items())
        notes.append(f"the arms have not the same training seeds ({shown}): differences rest on those that both have")
    fewest = min(map(len, seeds.values()), default=0)
    if fewest == 1:
        notes.append("an arm has one training seed: differences are between these trained models, not between the arms")
    elif 1 < fewest < EXACT_SEEDS:
        notes.append(
            f"{fewest} training seeds: an exact test over seeds cannot go below p = {least_p_value(fewest):.4g}, so no "
            f"p-value is given for the arms; with {EXACT_SEEDS} seeds it could. The interval over so few seeds is approximate"
        )
    compared = len(seeds) - 1
    if fewest >= EXACT_SEEDS and least_p_value(fewest) * compared > LEVEL:
        enough = next(n for n in itertools.count(fewest) if least_p_value(n) * compared <= LEVEL)
        notes.append(
            f"{fewest} training seeds: adjusted for {compared} arms, no p over seeds can go below "
            f"{least_p_value(fewest) * compared:.2g}, so none can show a difference; with {enough} seeds it could"
        )
    return notes


def unequal_missions(cells: Sequence[Cell]) -> list[str]:
    if len({frozenset(cell.missions) for cell in cells}) <= 1:
        return []
    common = set.intersection(*(set(cell.missions) for cell in cells))
    counts = ", ".join(f"{cell.name} {len(cell.missions)}" for cell in cells)
    return [f"cells have not played the same missions ({counts}): paired figures rest on the {len(common)} in common"]


def unequal_training(cells: Sequence[Cell]) -> list[str]:
    """Data, steps and decisions that differ: the arms then differ in more than in what is asked."""
    notes = []
    facts = {
        "data": lambda cell: cell.data.get("dataset_hash"),
        "number of training rows": lambda cell: (cell.seed, cell.data.get("num_train_rows")),
        "number of decisions learned from": decisions_learned,
    }
    for what, fact in facts.items():
        values: dict[object, list[str]] = {}
        for cell in cells:
            values.setdefault(fact(cell), []).append(cell.name)
        by_seed = what == "number of training rows"
        num_expected = len({cell.seed for cell in cells}) if by_seed else 1
        if len(values) > num_expected:
            shown = "; ".join(f"{value}: {', '.join(names)}" for value, names in values.items())
            notes.append(f"the cells were not trained on the same {what} ({shown}): a difference may come from that")
    return notes


def unequal_precision(cells: Sequence[Cell]) -> list[str]:
    """Cells on machines of different kinds; results from before precision was noted say nothing."""
    values: dict[str, list[str]] = {}
    for cell in cells:
        if precision := cell.about.get("precision"):
            shown = f"trained in {precision.get('trained')}, evaluated in {precision.get('evaluated')}"
            values.setdefault(shown, []).append(cell.name)
    if len(values) <= 1:
        return []
    shown = "; ".join(f"{value}: {', '.join(names)}" for value, names in values.items())
    return [f"the cells were not computed in the same precision ({shown}): a difference may come from that"]


def decisions_learned(cell: Cell) -> int | None:
    """Rows that the run learned from, each one decision: steps x rows of a step; None if the run does not say."""
    config = cell.about.get("config", {}).get("train")
    steps = max((line["step"] for line in cell.lines), default=None)
    return None if config is None or steps is None else steps * config["batch_size"] * config["accumulation"]


def arm_interval(cells: dict[int, Cell], outcome: str) -> Interval:
    """An arm's mean over its training seeds, resampled by mission: of these trained models."""
    missions = sorted(set.intersection(*(set(cell.missions) for cell in cells.values())))
    values = [[OUTCOMES[outcome](cell.missions[m]) for cell in cells.values()] for m in missions]
    return bootstrap_mean([float(np.mean(row)) for row in values])


@dataclass(frozen=True)
class Association:
    """Offline accuracy against online success over cells: Spearman's rank correlation, p by permutation."""

    name: str
    num_cells: int
    rho: float
    p_value: float
    rho_within: float
    """The same after each arm's own mean is taken off both: between training seeds alone."""


OFFLINE = {
    "argument_accuracy": lambda cell: cell.argument_accuracy,
    "token_loss/all": lambda cell: cell.last.get("eval/token_loss/all"),
    "token_loss/values": lambda cell: cell.last.get("eval/token_loss/values"),
}
LEAST_CELLS = 5


def associations(by_arm: dict[str, dict[int, Cell]], outcome: str = "success") -> list[Association]:
    """None for a figure that fewer than LEAST_CELLS cells have, or that is the same in all."""
    from scipy.stats import permutation_test, rankdata

    found = []
    for name, offline in OFFLINE.items():
        pairs = [(arm, offline(c), c.mean(outcome)) for arm, cells in by_arm.items() for c in cells.values()]
        pairs = [pair for pair in pairs if pair[1] is not None]
        x, y = (np.array([pair[i] for pair in pairs]) for i in (1, 2))
        if len(pairs) < LEAST_CELLS or len(set(x)) == 1 or len(set(y)) == 1:
            continue
        rx, ry = rankdata(x), rankdata(y)
        test = permutation_test(
            (rx,),
            lambda a, ry=ry: np.corrcoef(a, ry)[0, 1],
            permutation_type="pairings",
            n_resamples=9_999,
            rng=np.random.default_rng(0),
        )
        found.append(Association(name, len(pairs), float(test.statistic), float(test.pvalue), within(pairs)))
    return found


def within(pairs: Sequence[tuple[str, float, float]]) -> float:
    """Correlation of what is left when each arm's mean is taken off; NaN if nothing is left."""
    arms = [arm for arm, _, _ in pairs]
    left = []
    for i in (1, 2):
        means = {a: np.mean([pair[i] for pair in pairs if pair[0] == a]) for a in set(arms)}
        left.append(np.array([pair[i] - means[pair[0]] for pair in pairs]))
    if min(np.ptp(values) for values in left) < 1e-12:
        return math.nan
    return float(np.corrcoef(*left)[0, 1])


@dataclass(frozen=True)
class Loss:
    """What a further play costs an arm: success without it and with it, on the same seeds and missions."""

    arm: str
    name: str
    seeds: tuple[int, ...]
    num_missions: int
    share_changed: float
    """Of the missions; the rest ended before the change."""
    normal: float
    changed: float
    difference: Interval
    p_models: float


def losses_of_plays(by_arm: dict[str, dict[int, Cell]]) -> list[Loss]:
    """For each arm and each counterfactual that was played, and for CONSTRAINED."""
    found = []
    for arm, cells in by_arm.items():
        names = dict.fromkeys(name for cell in cells.values() for name in cell.changed)
        for name in names:
            having = {seed: cell for seed, cell in cells.items() if name in cell.changed}
            changed = {seed: as_played(cell, name) for seed, cell in having.items()}
            one = contrast(changed, having, "success", (name, arm))
            if one is None:
                continue
            records = [record for cell in changed.values() for record in cell.episodes]
            share = sum(r.changed_turn is not None for r in records) / len(records) if is_partial(cells, name) else 1.0
            found.append(
                Loss(arm, name, one.seeds, one.num_missions, share, one.second, one.first, one.difference, one.p_models)
            )
    return found


def is_partial(cells: dict[int, Cell], name: str) -> bool:
    """Whether a further play changed only the missions that say so, those of a changed environment."""
    world = next(iter(cells.values())).world
    counterfactual = world.counterfactuals().get(name)
    return counterfactual is not None and counterfactual.change_env is not None


def as_played(cell: Cell, name: str) -> Cell:
    """The cell with what a further play gave in place of the missions."""
    about, episodes = cell.changed[name]
    return replace(cell, about=about, episodes=episodes, changed={})


def constrained_study(study: Study) -> Study | None:
    """The same arms with constrained decoding; None if no cell has played so."""
    cells = [as_played(cell, CONSTRAINED) for cell in study.cells if CONSTRAINED in cell.changed]
    return replace(study, cells=tuple(cells)) if cells else None


def pooled_share(cells: dict[int, Cell], holds: Callable, counts: Callable = lambda step: True) -> Interval:
    """Share of the turns that count for which `holds`, all training seeds together, resampled by mission."""
    hits, tries = Counter(), Counter()
    for cell in cells.values():
        for seed, record in cell.missions.items():
            steps = [step for step in record.steps if counts(step)]
            hits[seed] += sum(map(holds, steps))
            tries[seed] += len(steps)
    return bootstrap_ratio([hits[m] for m in tries], list(tries.values()))
