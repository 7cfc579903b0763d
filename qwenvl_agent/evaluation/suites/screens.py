"""Offline: one answer to each labelled screen."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwenvl_agent.config import Config, EvalConfig
from qwenvl_agent.containers import data_files
from qwenvl_agent.data.readers.units import UNDECLARED, Declared
from qwenvl_agent.evaluation import clicks, elements, screens
from qwenvl_agent.evaluation.clicks import ClickRecord
from qwenvl_agent.evaluation.elements import ElementsRecord
from qwenvl_agent.evaluation.figures import as_scalars, prompt_hash
from qwenvl_agent.evaluation.suites.episodes import fitting_suites, kinds_of
from qwenvl_agent.evaluation.suites.suite import (
    Evaluation,
    Options,
    Say,
    Suite,
    Work,
    pick_rows,
    predict_in_time,
    work_on_rows,
)
from qwenvl_agent.schema import Policy, Row
from qwenvl_agent.worlds.world import Metrics

CRASHED = {"error_rate": ("crashed", "screens to which a silent server gave no answer")}


class Screens(Suite):
    """What the suites of labelled screens have in common."""

    case, cases = "screen", "screens"
    page = "screens"

    def case_of(self, record) -> str:
        return record.case_id


class Clicks(Screens):
    """Where an instruction is acted on."""

    name = "clicks"
    record = ClickRecord
    title, intro = "Screens, one answer each", ""
    success_metric, group = "box_hit_rate", "clicks"
    options = ("rows", "data", "split", "unit", "box_unit", "box_order")
    not_shares = clicks.NOT_SHARES
    labels = {**clicks.LABELS, **CRASHED}
    columns = {
        "near_rate": "near %",
        "box_hit_rate": "box hit %",
        "within_25_px": "25 px %",
        "action_accuracy": "action %",
        "pixel_error_median": "median px",
        "parse_rate": "parsed %",
    }
    outcomes = clicks.OUTCOMES
    good = frozenset({"hit"})

    def measure(self, records: Sequence[ClickRecord]) -> Metrics:
        return clicks.click_metrics(records)

    def outcome(self, record: ClickRecord) -> str:
        return clicks.outcome(record)

    def prepare(self, config: Config, policy: Policy | None, options: Options, say: Say) -> Work:
        tasks = self.read(config, options, say)
        say(screens.summary(tasks.tasks, tasks.rejected, tasks.about))
        known = {"oracle": lambda: screens.LabelOracle(tasks.tasks), "random": screens.RandomClicker}
        policy = policy or self.pick_baseline(options.baseline, known)
        picked = pick_rows(tasks.tasks, options.rows or len(tasks.tasks))
        about = tasks.about | {"prompt_hash": prompt_hash(picked[0].request, config.prompt)}
        return work_on_rows(policy, picked, about, config.eval.batch_size, clicks.predict_clicks)

    def read(self, config: Config, options: Options, say: Say) -> screens.TaskSet:
        """What --data names; without it, the screens that the config's data holds out."""
        declared = screens.declared_by_file(config.data.sources)
        if options.data:
            is_own = data_files(options.data)[0].resolve() in [file.resolve() for file in declared]
            found = screens.read_tasks(options.data, options.split, self.declared(options, declared))
            if found.about["split"] != "test" and is_own:
                say(f"note: {options.data} is what the run was trained on; without --data it is what was held out")
            return found
        if not declared:
            raise ValueError("--suite clicks without --data, and the config has no data of kind computer: give --data")
        from qwenvl_agent.data.dataset import build_rows

        held_out = build_rows(config.data, config.prompt).held_out
        return screens.read_held_out(list(declared), [row.source for row in held_out], declared)

    def declared(self, options: Options, by_file: Mapping[Path, Declared]) -> Declared:
        """What the command says of the places of --data; else what the config says of that file."""
        said = Declared(options.unit, options.box_unit, options.box_order)
        known = {file.resolve(): declared for file, declared in by_file.items()}
        return said if said != UNDECLARED else known.get(data_files(options.data)[0].resolve(), UNDECLARED)

    # inside training

    def check(self, config: Config) -> None:
        sources = config.data.sources
        if sources and all(source.kind != "computer" for source in sources):
            raise ValueError(
                f"eval.suite is 'clicks' and {kinds_of(sources)}: the model would be judged by what it does not learn; use "
                f"eval.suite={' or '.join(fitting_suites(sources))}"
            )
        if not config.data.eval_fraction:
            raise ValueError(
                "eval.suite is 'clicks' and data.eval_fraction is 0: no screen would be held out to measure on; raise it, "
                "or use eval.suite=none"
            )

    def check_held_out(self, held_out: Sequence[Row]) -> None:
        if not held_out:
            raise ValueError(
                "eval.suite is 'clicks' and no screen is held out: nothing could be measured at the end; raise "
                "data.eval_fraction, or use eval.suite=none"
            )
        held_out_screens(held_out)

    def evaluate(
        self, policy: Policy, cfg: EvalConfig, *, held_out: Sequence[Row], history_steps: int, time_limit_s: float
    ) -> Evaluation:
        """Of the held-out screens."""
        found, lost = readable_screens(held_out)
        tasks = pick_rows(found, cfg.episodes)
        records = predict_in_time(policy, tasks, cfg.batch_size, time_limit_s, clicks.predict_clicks)
        return Evaluation((as_scalars(self.measure(records), self.group) if records else {}) | lost)


class ScreenSpot(Clicks):
    """The published sets of that name."""

    name = "screenspot"
    title = "ScreenSpot"
    group = ""
    options = ("rows", "data", "layout", "pictures")
    needs = ("data", "layout")
    columns = {
        "box_hit_rate": "box hit %",
        "box_hit_macro": "macro %",
        "pixel_error_median": "median px",
        "parse_rate": "parsed %",
    }

    def measure(self, records: Sequence[ClickRecord]) -> Metrics:
        return clicks.screenspot_metrics(records)

    def read(self, config: Config, options: Options, say: Say) -> screens.TaskSet:
        return screens.read_screenspot(options.data, options.layout, options.pictures)


class Elements(Screens):
    """The list of all elements of a screen."""

    name = "elements"
    record = ElementsRecord
    title, intro = "Elements of screens", ""
    success_metric = "f1"
    options = ("rows", "data")
    needs = ("data",)
    labels = {**elements.LABELS, **CRASHED}
    columns = {"f1": "F1 %", "precision": "precision %", "recall": "recall %", "type_accuracy": "type %"}
    outcomes = elements.OUTCOMES
    good = frozenset({"complete"})

    def measure(self, records: Sequence[ElementsRecord]) -> Metrics:
        return elements.elements_metrics(records)

    def outcome(self, record: ElementsRecord) -> str:
        return elements.outcome(record)

    def prepare(self, config: Config, policy: Policy | None, options: Options, say: Say) -> Work:
        tasks, rejected, about = elements.read_elements(options.data)
        say(screens.summary(tasks, rejected, about))
        policy = policy or self.pick_baseline(options.baseline, {"oracle": lambda: elements.ListOracle(tasks)})
        picked = pick_rows(tasks, options.rows or len(tasks))
        about = about | {"prompt_hash": prompt_hash(picked[0].request, config.prompt)}
        return work_on_rows(policy, picked, about, config.eval.batch_size, elements.predict_elements)


def held_out_screens(rows: Sequence[Row]) -> tuple[screens.ScreenTask, ...]:
    """The samples of kind computer that these rows were made of."""
    sources = [row.source for row in rows]
    files = [Path(file) for file in dict.fromkeys(source.rpartition(":")[0] for source in sources)]
    # A run's rows know their sources; of others nothing is declared.
    caches = getattr(rows, "sources", ())
    return screens.read_held_out(files, sources, screens.declared_by_file(cache.cfg for cache in caches)).tasks


def readable_screens(rows: Sequence[Row]) -> tuple[tuple[screens.ScreenTask, ...], dict[str, float]]:
    """The held-out screens that can still be read, and how many cannot: each of those is named on stderr."""
    sources = [row.source for row in rows]
    try:
        tasks = held_out_screens(rows)
    except ValueError as error:  # none is left
        print(f"left out of the evaluation: {error}", file=sys.stderr)
        return (), {"clicks/unusable_screens": float(len(sources))}
    lost = sorted(set(sources) - {task.source for task in tasks})
    for source in lost:
        print(f"left out of the evaluation: {source}: its screen cannot be read any more", file=sys.stderr)
    return tasks, {"clicks/unusable_screens": float(len(lost))} if lost else {}
