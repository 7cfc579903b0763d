"""Results for people: tables for the terminal, and report.html, one file with all pictures inside.

The first result is the one in focus: it decides which cases are shown (its failures first), and the others are tested
against it and stand beside it on the same seeds.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.table import Table

from qwenvl_agent.evaluation.results import read_result
from qwenvl_agent.evaluation.screen_cases import screen_view
from qwenvl_agent.evaluation.suites import Suite, suite_of
from qwenvl_agent.html_templates import render_report
from qwenvl_agent.images import read_rgb
from qwenvl_agent.records import StepRecord
from qwenvl_agent.statistics import holm, paired_test
from qwenvl_agent.worlds import World

MAX_CASES = 60
"""Cases of a page with one or two results; with more, as many as keep the file about as large."""
FAILURE_SHARE = 0.75
"""At most this share of the shown cases are failures, so that successes are seen too."""
MAX_INLINE_CHARS = 60
"""A longer text argument stands in a block of its own."""

PICTURE_PX = {False: 132, True: 370}
"""Width on the page of small pictures, such as a drawn world's view, and of screenshots."""
SMALL_PX = 300
EXPLAINED = ("path_efficiency",)
"""Metrics whose heading alone would mislead: an oracle that has to search has an efficiency far below 1."""
UNKNOWN = {"value": None}
"""A metric that an older result does not have."""


@dataclass(frozen=True)
class Result:
    """A result folder, read; `name` is unique among the results shown together."""

    name: str
    directory: Path
    metrics: dict
    records: list
    suite: Suite

    @property
    def about(self) -> dict:
        return self.metrics["about"]

    @cached_property
    def by_case(self) -> dict:
        return {self.suite.case_of(record): record for record in self.records}

    @cached_property
    def outcomes(self) -> dict[str, str]:
        """By case: seed or row id."""
        return {case: self.suite.outcome(record) for case, record in self.by_case.items()}

    @cached_property
    def successes(self) -> dict[str, bool]:
        """By case."""
        return {case: self.suite.is_success(record) for case, record in self.by_case.items()}


def read_results(directories: Sequence[Path]) -> list[Result]:
    """ValueError for what is no result, or for results of different suites."""
    results, names = [], set()
    for directory in map(Path, directories):
        metrics, records, suite = read_result(directory)
        name = metrics["about"]["policy"]
        if name in names:
            name = f"{name} ({directory.name})"
        names.add(name)
        results.append(Result(name, directory, metrics, records, suite))
    found = {result.about["suite"] for result in results}
    if len(found) > 1:
        raise ValueError(
            f"results of the suites {', '.join(sorted(found))} have no metric in common; compare one suite"
        )
    return results


# comparison


def compare(directories: Sequence[Path]) -> dict:
    """JSON values: every result's metrics, and for each but the first a paired test on the cases that both have."""
    results = read_results(directories)
    return {
        "results": [{"name": r.name, "directory": str(r.directory), "metrics": r.metrics} for r in results],
        "tests": test_all(results),
    }


def test_all(results: Sequence[Result]) -> list[dict]:
    """Each but the first against the first, with Holm's p-values."""
    first = results[0]
    tests = [paired(first, other) for other in results[1:]]
    tested = [test for test in tests if "p_value" in test]
    for test, p_value in zip(tested, holm([test["p_value"] for test in tested]), strict=True):
        test["p_value_holm"] = p_value
    return tests


def paired(first: Result, other: Result) -> dict:
    """McNemar's test of `first` against `other`; `not_paired` says why there is none.

    `difference` is first minus second, a share; tables turn it round (`cells_of_test`).
    """
    names = {"first": first.name, "second": other.name}
    if first.suite.pairing(first.about) != other.suite.pairing(other.about):
        return {**names, "not_paired": f"another {first.suite.paired_by.replace('_', ' ')}"}
    ours, theirs = first.successes, other.successes
    cases = [case for case in ours if case in theirs]
    if not cases:
        return {**names, "not_paired": f"no {first.suite.case}s in common"}
    test = paired_test([ours[case] for case in cases], [theirs[case] for case in cases])
    return {
        **names,
        "num_cases": len(cases),
        "difference": test.difference.to_json(),
        "only_first": test.only_first,
        "only_second": test.only_second,
        "p_value": test.p_value,
    }


# tables for the terminal


def metrics_table(title: str, metrics: dict, suite: Suite) -> Table:
    """All metrics of one result, but for those by group."""
    table = Table(title=title)
    for heading, justify in (("", "left"), ("value", "right"), ("95 % interval", "right"), ("n", "right")):
        table.add_column(heading, justify=justify)
    for name, metric in metrics.items():
        if "=" in name:
            continue  # by group: on the page
        if is_rate(metric):
            cell = cell_of(name, metric, suite)
            table.add_row(label_of(name, suite), cell["value"], cell["interval"], str(metric["n"]))
        elif name != "about" and metric:
            table.add_row(name.replace("_", " "), ", ".join(f"{key} {number}" for key, number in metric.items()))
    return table


def comparison_table(comparison: dict) -> Table:
    """Results beside each other; p by McNemar against the first, adjusted by Holm. The metrics that need words have them
    below the table."""
    suite = suite_of(comparison["results"][0]["metrics"]["about"])
    columns = dict(suite.columns)
    if any(result["metrics"].get("error_rate", {}).get("value") for result in comparison["results"]):
        columns = columns | {"error_rate": "crashed %"}
    first = comparison["results"][0]["name"]
    title = f"{suite.name}: 95 % intervals; difference: each minus {first}, in points; p: McNemar, Holm"
    helps = [f"{heading}: {suite.labels[name][1]}" for name, heading in columns.items() if name in EXPLAINED]
    table = Table(title=title, caption="\n".join(helps), caption_justify="left")
    table.add_column("", no_wrap=True)
    for heading in (*columns.values(), "n", "difference", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result, test in zip(comparison["results"], [None, *comparison["tests"]], strict=True):
        shown = [short_cell(name, result["metrics"].get(name, UNKNOWN), suite) for name in columns]
        n = str(result["metrics"][next(iter(columns))]["n"])
        table.add_row(result["name"], *shown, n, *cells_of_test(test))
    return table


def short_cell(name: str, metric: dict, suite: Suite) -> str:
    """Value and interval on two lines, percents without their sign."""
    if metric["value"] is None:
        return "-"
    scale, digits = (1, 1) if name in suite.not_shares else (100, 0)
    low, high = scale * metric["low"], scale * metric["high"]
    return f"{scale * metric['value']:.1f}\n{low:.{digits}f} .. {high:.{digits}f}"


def cells_of_test(test: dict | None) -> tuple[str, str]:
    """(difference, p) as text; the difference is the second's, which has the row, minus the first's, in points."""
    if test is None:
        return "", ""
    if "not_paired" in test:
        return test["not_paired"], ""
    d = test["difference"]
    value, low, high = (-100 * d[key] + 0.0 for key in ("value", "high", "low"))  # + 0.0: no minus zero
    return f"{value:+.1f}\n{low:+.0f} .. {high:+.0f}", p_text(test["p_value_holm"])


def p_text(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def is_rate(metric: object) -> bool:
    return isinstance(metric, dict) and "low" in metric


def label_of(name: str, suite: Suite) -> str:
    """Of `box_hit_rate/desktop/text` the label of the metric, and the rest."""
    metric, slash, rest = name.partition("/")
    return suite.labels.get(metric, (metric.replace("_", " "), ""))[0] + (f", {rest}" if slash else "")


def cell_of(name: str, metric: dict, suite: Suite) -> dict[str, str]:
    """A metric's value and interval as text."""
    if metric["value"] is None:
        return {"value": "-", "interval": ""}
    if name in suite.not_shares:
        return {"value": f"{metric['value']:.1f}", "interval": f"{metric['low']:.1f} .. {metric['high']:.1f}"}
    low, high = 100 * metric["low"], 100 * metric["high"]
    return {"value": f"{100 * metric['value']:.1f} %", "interval": f"{low:.1f} .. {high:.1f}"}


# the page


def write_report(path: str | Path, directories: Sequence[Path]) -> None:
    """One HTML file: figures, and cases of the first result (failures first) with every policy's answers beside it."""
    results = read_results(directories)
    template, view = PAGES[results[0].suite.page]
    suite = results[0].suite
    page = render_report(
        template,
        suite=suite,
        tests=[{**test, "cells": cells_of_test(test)} for test in test_all(results)],
        num_cases=len(results[0].records),
        outcomes=shown_outcomes(results),
        **view(results),
    )
    Path(path).write_text(page, encoding="utf-8")


def turns_page(results: Sequence[Result]) -> dict:
    """Cases turn by turn, of every result beside the first."""
    pictures: dict[str, str] = {}
    cases = choose_cases(results[0], MAX_CASES if len(results) <= 2 else max(12, 2 * MAX_CASES // len(results)))
    return {
        "results": [
            {"name": r.name, "note": note_of(r), "success": success_of(r), "ends": ends_of(r, results)} for r in results
        ],
        "rows": table_rows(results),
        "cases": [case_view(case, results, pictures) for case in cases],
        "pictures": pictures,
        "picture_px": PICTURE_PX[has_screenshots(results[0])],
    }


def has_screenshots(result: Result) -> bool:
    """Whether the first picture that is there is larger than a drawn world's."""
    steps = (step for record in result.records for step in result.suite.view(record).steps)
    paths = (result.directory / step.picture for step in steps if step.picture)
    path = next((path for path in paths if path.is_file()), None)
    return path is not None and read_rgb(path, str(path)).width > SMALL_PX


def screens_page(results: Sequence[Result]) -> dict:
    """Screens of the first result, failures first, with what every result did on them."""
    rows = table_rows(results)
    return {
        "results": [{"name": r.name, "note": note_of(r), "ends": ends_of(r, results)} for r in results],
        "tables": {
            group: [row for row in rows if row["group"] == group] for group in dict.fromkeys(r["group"] for r in rows)
        },
        "cases": [screens_case(case, results) for case in choose_cases(results[0], MAX_CASES)],
    }


PAGES = {"turns": ("report.html.jinja", turns_page), "screens": ("screens.html.jinja", screens_page)}
"""By `Suite.page`: the template, and what is put into it."""


def screens_case(case: str, results: Sequence[Result]) -> dict:
    """One screen, and the answer of each result that has it."""
    having = [(index, result) for index, result in enumerate(results) if case in result.by_case]
    answers = [{"result": index, "name": result.name, **end_of(case, result)} for index, result in having]
    return {"id": case, "answers": answers, **screen_view([result.by_case[case] for _, result in having])}


def end_of(case: str, result: Result) -> dict:
    return {"outcome": result.outcomes[case], "is_success": result.successes[case]}


def shown_outcomes(results: Sequence[Result]) -> dict[str, str]:
    """Those that occur, in the suite's order, with words; a world's end reason that has none is its own."""
    known = results[0].suite.outcomes
    found = dict.fromkeys(name for result in results for name in result.outcomes.values())
    names = [*(name for name in known if name in found), *(name for name in found if name not in known)]
    return {name: known.get(name, name.replace("_", " ")) for name in names}


def choose_cases(result: Result, max_cases: int) -> list[str]:
    """Failures first, one of each outcome before the others, then successes, in the order of the records."""
    failures = [case for case, is_success in result.successes.items() if not is_success]
    firsts = {result.outcomes[case]: case for case in reversed(failures)}.values()
    failures = sorted(failures, key=lambda case: case not in firsts)
    successes = [case for case, is_success in result.successes.items() if is_success]
    num_failures = max(int(max_cases * FAILURE_SHARE), max_cases - len(successes))
    failures = failures[:num_failures]
    return failures + successes[: max_cases - len(failures)]


def note_of(result: Result) -> str:
    """Where a result comes from, in a line."""
    about = result.about
    facts = [f"{len(result.records)} {result.suite.cases}"]
    num_failed = sum(map(bool, map(result.suite.failure, result.records)))
    facts += [f"{num_failed} of them ended with an error"] if num_failed else []
    if "rejected" in about:
        facts.append(f"{sum(about['rejected'].values())} rejected")
    if "seeds" in about:
        facts.append(f"seeds from {about['seeds']['start']} ({about['seeds']['set']})")
    if "checkpoint" in about:
        facts.append(f"checkpoint {about['checkpoint']}")
    if "processor" in about:
        facts.append(f"format {about['config']['prompt']['format']}")
    if "seconds" in about:
        facts.append(f"{about['seconds']:.0f} s")
    return ", ".join(facts)


def success_of(result: Result) -> dict:
    name, suite = result.suite.success_metric, result.suite
    metric = result.metrics[name]
    label = label_of(name, suite)
    return {**metric, **cell_of(name, metric, suite), "share": metric["value"] or 0.0, "label": label}


def ends_of(result: Result, results: Sequence[Result]) -> list[dict]:
    """How the cases ended: share of each outcome."""
    names = list(result.outcomes.values())
    return [
        {"name": name, "text": text, "num": names.count(name), "share": names.count(name) / len(names)}
        for name, text in shown_outcomes(results).items()
        if name in names
    ]


def table_rows(results: Sequence[Result]) -> list[dict]:
    """A row for each metric, a cell for each result."""
    names = dict.fromkeys(name for result in results for name, metric in result.metrics.items() if is_rate(metric))
    empty, suite = {"value": "", "interval": "", "n": ""}, results[0].suite
    return [
        {
            "group": name.partition("/")[2].partition("=")[0] if "=" in name else "",
            "label": label_of(name, suite),
            "help": suite.labels.get(name, ("", ""))[1],
            "cells": [
                {**cell_of(name, r.metrics[name], suite), "n": r.metrics[name]["n"]} if name in r.metrics else empty
                for r in results
            ],
        }
        for name in names
    ]


def case_view(case: str, results: Sequence[Result], pictures: dict[str, str]) -> dict:
    """One seed or row: a column for each result that has it."""
    columns, title = [], case
    for index, result in enumerate(results):
        if case in result.by_case:
            columns.append({"result": index, "name": result.name, **record_view(case, result, pictures)})
            title = columns[0]["title"]
    return {"id": case, "title": title, "columns": columns}


def record_view(case: str, result: Result, pictures: dict[str, str]) -> dict:
    view, world = result.suite.view(result.by_case[case]), result.suite.world
    return {
        "title": view.title,
        **end_of(case, result),
        "facts": view.facts,
        "error": view.error,
        "steps": [
            step_view(number, step, result.directory, world, pictures) for number, step in enumerate(view.steps, 1)
        ],
    }


def step_view(number: int, step: StepRecord, directory: Path, world: World, pictures: dict[str, str]) -> dict:
    calls = [call.as_json() for call in step.calls]
    is_as_expected = step.expected is None or step.expected == calls
    return {
        "number": number,
        "picture": inline(directory, step.picture, pictures),
        "marks": [{"x": 100 * mark.x, "y": 100 * mark.y, "name": mark.name} for mark in world.marks(step)],
        "context": step.context,
        "thought": step.thought,
        # What was read shows all of a sound answer; the raw text tells why another was not read, or was mended.
        "text": step.text if step.error or step.repairs else "",
        "calls": [call_view(call) for call in calls],
        "results": [f"{r['name'] or 'world'}: {compact(r['content'])}" for r in step.results],
        "expected": [] if is_as_expected else [call_view(call) for call in step.expected],
        "expected_thought": "" if is_as_expected else step.expected_thought,
        "verdicts": list(verdicts(step, world)),
    }


def verdicts(step: StepRecord, world: World) -> Iterable[tuple[str, str]]:
    """(kind good | bad | odd, text) on a turn."""
    if step.error:
        yield "bad", f"unreadable: {step.error}"
    for name in step.repairs:
        yield "odd", f"repaired: {name}"
    for call in step.calls:
        if not call.schema_ok:
            yield "bad", f"{call.name}: " + ("breaks its schema" if call.name_ok else "no such tool")
        elif call.legal is False:
            yield "bad", f"{call.name}: {world.labels.refusals.get(call.name, 'refused')}"
    if step.calls and world.agrees(step.thought, [call.as_json() for call in step.calls]) is False:
        yield "odd", "does not do what the thought says"
    if step.calls and all(call.optimal for call in step.calls):
        yield "good", "optimal"
    elif any(call.optimal is False and call.legal for call in step.calls):
        yield "odd", "not the oracle's turn"


def call_view(call: dict) -> dict:
    """`move(RIGHT 3, UP 1)`; long texts as blocks."""
    is_block = {
        key: isinstance(value, str) and len(value) > MAX_INLINE_CHARS for key, value in call["arguments"].items()
    }
    inline_values = [compact(value) for key, value in call["arguments"].items() if not is_block[key]]
    blocks = [value for key, value in call["arguments"].items() if is_block[key]]
    return {"text": f"{call['name']}({', '.join(inline_values)})", "blocks": blocks}


def compact(value: object) -> str:
    """A JSON value for people: no quotes and braces where they tell nothing."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {compact(item)}" for key, item in value.items()) or "{}"
    if isinstance(value, list):
        # [{"direction": "UP", "steps": 2}, ...] reads well as `UP 2, ...`; longer or nested objects keep their keys.
        return ", ".join(" ".join(map(str, item.values())) if is_pair(item) else compact(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_pair(value: object) -> bool:
    return isinstance(value, dict) and len(value) == 2 and not any(isinstance(v, dict | list) for v in value.values())


def inline(directory: Path, picture: str, pictures: dict[str, str]) -> str:
    """Put the picture into `pictures` once, by its hash; gives that key, "" if there is no picture file."""
    path = directory / picture
    if not picture or not path.is_file():
        return ""
    data = path.read_bytes()
    key = hashlib.sha256(data).hexdigest()[:12]
    pictures[key] = base64.b64encode(data).decode()
    return key
