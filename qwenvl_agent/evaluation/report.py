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

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.table import Table

from qwenvl_agent.evaluation import clicks, elements
from qwenvl_agent.evaluation.clicks import ClickRecord
from qwenvl_agent.evaluation.elements import ElementsRecord
from qwenvl_agent.evaluation.screen_cases import screen_view
from qwenvl_agent.evaluation.step_metrics import RowRecord
from qwenvl_agent.evaluation.suites import describe_failures, judge, outcome, read_result
from qwenvl_agent.records import EpisodeRecord, StepRecord
from qwenvl_agent.statistics import holm, paired_test
from qwenvl_agent.worlds.safari.judge import REFUSALS, agrees

TEMPLATE_DIR = Path(__file__).parent.parent / "assets"
MAX_CASES = 60
"""Cases of a page with one or two results; with more, as many as keep the file about as large."""
FAILURE_SHARE = 0.75
"""At most this share of the shown cases are failures, so that successes are seen too."""
MAX_INLINE_CHARS = 60
"""A longer text argument stands in a block of its own."""

LABELS = {
    "box_hit_rate": ("box hit", "the first place acted on lies in the box of what is meant, edges included"),
    "box_hit_macro": ("box hit, macro", "mean over the cells of platform or field, and text or icon"),
    "hit_test_rate": ("hit-test hit", "a click there reaches what is meant, whatever lies over its box"),
    "near_rate": ("right action within 50 px", "the same action, less than 50 px away along both axes"),
    "action_accuracy": ("action", "the right kinds of action, in order"),
    "within_10_px": ("within 10 px", "of the labelled place, in pixels of the picture as it is"),
    "within_25_px": ("within 25 px", ""),
    "within_50_px": ("within 50 px", ""),
    "within_100_px": ("within 100 px", ""),
    "word_accuracy": ("words", "typed, answered and pressed as in the label"),
    "pixel_error": ("pixel error, mean", "from the labelled place, over answers with a place"),
    "pixel_error_median": ("pixel error, median", ""),
    "error_of_diagonal": ("error / diagonal", "mean, over answers with a place"),
    "f1": ("F1", "of elements, matched one to one at an IoU of at least 0.5"),
    "precision": ("precision", "of the listed elements, those that are there"),
    "recall": ("recall", "of the elements that are there, those listed"),
    "type_accuracy": ("type", "of matched elements"),
    "text_accuracy": ("text", "of matched elements"),
    "harm_rate": ("harm", "episodes in which something was done that cannot be made good"),
    "success_rate": ("mission success", "declare_done called, every target found, nothing declared falsely"),
    "error_rate": ("crashed", "cases that a crash of the world or a silent server ended, not the policy"),
    "progress": ("targets found", "mean share of a mission's targets"),
    "mean_turns": ("turns", "over all episodes; a failure counts with the turns it took"),
    "mean_turns_success": ("turns of successes", ""),
    "path_efficiency": ("path efficiency", "success x optimal turns / turns taken"),
    "false_declaration_rate": ("false declarations", "episodes that declared something found that was not"),
    "strict_parse_rate": ("parsed strictly", "turns read without any repair"),
    "parse_rate": ("parsed", "turns read, repaired ones included"),
    "schema_rate": ("schema", "and every call names a tool and fits its schema"),
    "name_accuracy": ("names", "calls the same tools as the oracle or the label"),
    "argument_accuracy": ("arguments", "with the very same arguments"),
    "legal_rate": ("legal", "and the state refuses no call"),
    "optimal_rate": ("optimal", "and ends where the oracle's turn ends, doing the same there"),
    "invalid_action_rate": ("invalid actions", "calls refused by schema or state, and unreadable turns"),
    "effective_rate": ("effective actions", "calls that changed something"),
    "thought_coverage": ("thoughts with a plan", "share of the thoughts that announce what to do"),
    "thought_consistency": ("thought = action", "of those, turns that do what their thought says"),
}
NOT_SHARES = ("mean_turns", "mean_turns_success", "pixel_error", "pixel_error_median")
CASE_NAMES = {"safari": "episodes", "clicks": "screens", "screenspot": "screens", "elements": "screens"}
PLAYED = ("safari", "browser")
"""Suites of episodes; the others answer to data."""
SCREENS = ("clicks", "screenspot", "elements")
TERMINAL_COLUMNS = {
    "safari": {
        "success_rate": "success %",
        "progress": "found %",
        "mean_turns": "turns",
        "mean_turns_success": "if won",
        "path_efficiency": "efficiency %",
    },
    "browser": {
        "success_rate": "success %",
        "progress": "goals %",
        "mean_turns": "turns",
        "mean_turns_success": "if won",
        "harm_rate": "harm %",
    },
    "clicks": {
        "near_rate": "near %",
        "box_hit_rate": "box hit %",
        "within_25_px": "25 px %",
        "action_accuracy": "action %",
        "pixel_error_median": "median px",
        "parse_rate": "parsed %",
    },
    "screenspot": {
        "box_hit_rate": "box hit %",
        "box_hit_macro": "macro %",
        "pixel_error_median": "median px",
        "parse_rate": "parsed %",
    },
    "elements": {"f1": "F1 %", "precision": "precision %", "recall": "recall %", "type_accuracy": "type %"},
    "steps": {"parse_rate": "parsed %", "name_accuracy": "names %", "argument_accuracy": "arguments %"},
}
"""Of a comparison, by suite."""
OUTCOMES = {
    "done_ok": "all found and done",
    "done_early": "declared done too early",
    "done_false": "declared something falsely",
    "max_turns": "out of turns",
    "parse_abort": "unreadable answers in a row",
    "time_limit": "out of time",
    "error": "the world crashed, or no answer came",
    "same": "just as the label",
    "other_arguments": "the label's tools, other arguments",
    "other_tools": "other tools than the label",
    "hit": "right action, right place",
    "other_words": "other words at the right place",
    "other_place": "right action, elsewhere",
    "other_action": "another action",
    "complete": "all elements, nothing else",
    "incomplete": "elements missing or wrong",
    "unreadable": "unreadable",
}
UNKNOWN = {"value": None}
"""A metric that an older result does not have."""
GOOD = ("done_ok", "same", "hit", "complete")


@dataclass(frozen=True)
class Result:
    """A result folder, read; `name` is unique among the results shown together."""

    name: str
    directory: Path
    metrics: dict
    records: list

    @property
    def about(self) -> dict:
        return self.metrics["about"]

    @cached_property
    def by_case(self) -> dict:
        return {case_of(record): record for record in self.records}

    @property
    def outcomes(self) -> dict[str, str]:
        """By case: seed or row id."""
        return {case_of(record): outcome_of(record) for record in self.records}


def read_results(directories: Sequence[Path]) -> list[Result]:
    """ValueError for what is no result, or for results of different suites."""
    results, names = [], set()
    for directory in map(Path, directories):
        metrics, records = read_result(directory)
        name = metrics["about"]["policy"]
        if name in names:
            name = f"{name} ({directory.name})"
        names.add(name)
        results.append(Result(name, directory, metrics, records))
    found = {result.about["suite"] for result in results}
    if len(found) > 1:
        raise ValueError(
            f"results of the suites {', '.join(sorted(found))} have no metric in common; compare one suite"
        )
    return results


Record = EpisodeRecord | RowRecord | ClickRecord | ElementsRecord


def case_of(record: Record) -> str:
    if isinstance(record, ClickRecord | ElementsRecord):
        return record.case_id
    return record.row_id if isinstance(record, RowRecord) else str(record.seed)


def outcome_of(record: Record) -> str:
    """One of OUTCOMES."""
    if isinstance(record, EpisodeRecord):
        return outcome(record)
    if isinstance(record, ClickRecord):
        return clicks.outcome(record)
    if isinstance(record, ElementsRecord):
        return elements.outcome(record)
    calls = [call.as_json() for call in record.step.calls]
    if record.step.error:
        return "unreadable"
    if calls == record.step.expected:
        return "same"
    same_tools = [call["name"] for call in calls] == [call["name"] for call in record.step.expected]
    return "other_arguments" if same_tools else "other_tools"


# comparison


def compare(directories: Sequence[Path]) -> dict:
    """JSON values: every result's metrics, and for each but the first a paired test on the cases that both have."""
    results = read_results(directories)
    first = results[0]
    tests = [paired(first, other) for other in results[1:]]
    tested = [test for test in tests if "p_value" in test]
    for test, p_value in zip(tested, holm([test["p_value"] for test in tested]), strict=True):
        test["p_value_holm"] = p_value
    return {
        "results": [{"name": r.name, "directory": str(r.directory), "metrics": r.metrics} for r in results],
        "tests": tests,
    }


def paired(first: Result, other: Result) -> dict:
    """McNemar's test of `first` against `other`; `not_paired` says why there is none."""
    names = {"first": first.name, "second": other.name}
    key = "world" if first.about["suite"] in PLAYED else "dataset_hash"
    if first.about[key] != other.about[key]:
        return {**names, "not_paired": f"another {key.replace('_', ' ')}"}
    ours, theirs = first.outcomes, other.outcomes
    cases = [case for case in ours if case in theirs]
    if not cases:
        return {**names, "not_paired": "no seeds in common"}
    test = paired_test([ours[case] in GOOD for case in cases], [theirs[case] in GOOD for case in cases])
    return {
        **names,
        "num_cases": len(cases),
        "difference": test.difference.to_json(),
        "only_first": test.only_first,
        "only_second": test.only_second,
        "p_value": test.p_value,
    }


# tables for the terminal


def metrics_table(title: str, metrics: dict) -> Table:
    """All metrics of one result, but for those by group."""
    table = Table(title=title)
    for heading, justify in (("", "left"), ("value", "right"), ("95 % interval", "right"), ("n", "right")):
        table.add_column(heading, justify=justify)
    for name, metric in metrics.items():
        if "=" in name:
            continue  # by group: on the page
        if is_rate(metric):
            cell = cell_of(name, metric)
            table.add_row(label_of(name), cell["value"], cell["interval"], str(metric["n"]))
        elif name != "about" and metric:
            table.add_row(name.replace("_", " "), ", ".join(f"{key} {number}" for key, number in metric.items()))
    return table


def comparison_table(comparison: dict) -> Table:
    """Results beside each other; p by McNemar against the first, adjusted by Holm."""
    suite = comparison["results"][0]["metrics"]["about"]["suite"]
    columns = TERMINAL_COLUMNS[suite]
    if any(result["metrics"].get("error_rate", {}).get("value") for result in comparison["results"]):
        columns = columns | {"error_rate": "crashed %"}
    table = Table(title=f"{suite}: 95 % intervals; p against the first (McNemar, Holm)")
    table.add_column("", no_wrap=True)
    for heading in (*columns.values(), "n", "difference", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result, test in zip(comparison["results"], [None, *comparison["tests"]], strict=True):
        shown = [short_cell(name, result["metrics"].get(name, UNKNOWN)) for name in columns]
        n = str(result["metrics"][next(iter(columns))]["n"])
        table.add_row(result["name"], *shown, n, *cells_of_test(test))
    return table


def short_cell(name: str, metric: dict) -> str:
    """Value and interval on two lines, percents without their sign."""
    if metric["value"] is None:
        return "-"
    scale, digits = (1, 1) if name in NOT_SHARES else (100, 0)
    low, high = scale * metric["low"], scale * metric["high"]
    return f"{scale * metric['value']:.1f}\n{low:.{digits}f} .. {high:.{digits}f}"


def cells_of_test(test: dict | None) -> tuple[str, str]:
    """(difference, p) as text."""
    if test is None:
        return "", ""
    if "not_paired" in test:
        return test["not_paired"], ""
    d = test["difference"]
    interval = f"{100 * d['low']:+.0f} .. {100 * d['high']:+.0f}"
    return f"{100 * d['value']:+.1f}\n{interval}", p_text(test["p_value_holm"])


def p_text(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def is_rate(metric: object) -> bool:
    return isinstance(metric, dict) and "low" in metric


def label_of(name: str) -> str:
    """Of `box_hit_rate/desktop/text` the label of the metric, and the rest."""
    metric, slash, rest = name.partition("/")
    return LABELS.get(metric, (metric, ""))[0] + (f", {rest}" if slash else "")


def cell_of(name: str, metric: dict) -> dict[str, str]:
    """A metric's value and interval as text."""
    if metric["value"] is None:
        return {"value": "-", "interval": ""}
    if name in NOT_SHARES:
        return {"value": f"{metric['value']:.1f}", "interval": f"{metric['low']:.1f} .. {metric['high']:.1f}"}
    low, high = 100 * metric["low"], 100 * metric["high"]
    return {"value": f"{100 * metric['value']:.1f} %", "interval": f"{low:.1f} .. {high:.1f}"}


# the page


def write_report(path: str | Path, directories: Sequence[Path]) -> None:
    """One HTML file: figures, and cases of the first result (failures first) with every policy's turns beside it."""
    results = read_results(directories)
    suite = results[0].about["suite"]
    if suite == "browser":
        raise ValueError(
            f"{directories[0]} is of the suite browser: this page is for safari and steps; open the report.html that is "
            "in the result, or compare by eval.py --compare"
        )
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_DIR),
        autoescape=True,  # everything a model wrote is shown as text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    if suite in SCREENS:
        Path(path).write_text(screens_page(environment, results, directories), encoding="utf-8")
        return
    pictures: dict[str, str] = {}
    cases = choose_cases(results[0], MAX_CASES if len(results) <= 2 else max(12, 2 * MAX_CASES // len(results)))
    page = environment.get_template("report.html.jinja").render(
        suite=suite,
        results=[{"name": r.name, "note": note_of(r), "success": success_of(r), "ends": ends_of(r)} for r in results],
        rows=table_rows(results),
        tests=[{**test, "cells": cells_of_test(test)} for test in compare(directories)["tests"]],
        cases=[case_view(case, results, pictures) for case in cases],
        num_cases=len(results[0].records),
        outcomes={name: text for name, text in OUTCOMES.items() if any(name in r.outcomes.values() for r in results)},
        good=GOOD,
        pictures=pictures,
    )
    Path(path).write_text(page, encoding="utf-8")


def screens_page(environment: Environment, results: Sequence[Result], directories: Sequence[Path]) -> str:
    """Figures, and screens of the first result, failures first, with what every result did on them."""
    rows = table_rows(results)
    return environment.get_template("screens.html.jinja").render(
        suite=results[0].about["suite"],
        results=[{"name": r.name, "note": note_of(r), "ends": ends_of(r)} for r in results],
        tables={
            group: [row for row in rows if row["group"] == group] for group in dict.fromkeys(r["group"] for r in rows)
        },
        tests=[{**test, "cells": cells_of_test(test)} for test in compare(directories)["tests"]],
        cases=[screens_case(case, results) for case in choose_cases(results[0], MAX_CASES)],
        num_cases=len(results[0].records),
        outcomes={name: text for name, text in OUTCOMES.items() if any(name in r.outcomes.values() for r in results)},
        good=GOOD,
    )


def screens_case(case: str, results: Sequence[Result]) -> dict:
    """One screen, and the answer of each result that has it."""
    found = [(index, r.by_case[case]) for index, r in enumerate(results) if case in r.by_case]
    answers = [{"result": i, "name": results[i].name, "outcome": outcome_of(record)} for i, record in found]
    return {"id": case, "answers": answers, **screen_view([record for _, record in found])}


def choose_cases(result: Result, max_cases: int) -> list[str]:
    """Failures first, then successes, in the order of the records."""
    failures = [case for case, name in result.outcomes.items() if name not in GOOD]
    successes = [case for case, name in result.outcomes.items() if name in GOOD]
    num_failures = max(int(max_cases * FAILURE_SHARE), max_cases - len(successes))
    failures = failures[:num_failures]
    return failures + successes[: max_cases - len(failures)]


def note_of(result: Result) -> str:
    """Where a result comes from, in a line."""
    about = result.about
    facts = [f"{len(result.records)} {CASE_NAMES.get(about['suite'], 'rows')}"]
    facts += filter(None, [describe_failures(result.records)])
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
    name = "success_rate" if result.about["suite"] == "safari" else "argument_accuracy"
    metric = result.metrics[name]
    return {**metric, **cell_of(name, metric), "share": metric["value"] or 0.0} | {"label": label_of(name)}


def ends_of(result: Result) -> list[dict]:
    """How the cases ended: share of each outcome, in the order of OUTCOMES."""
    names = list(result.outcomes.values())
    return [
        {"name": name, "text": text, "num": names.count(name), "share": names.count(name) / len(names)}
        for name, text in OUTCOMES.items()
        if name in names
    ]


def table_rows(results: Sequence[Result]) -> list[dict]:
    """A row for each metric, a cell for each result."""
    names = dict.fromkeys(name for result in results for name, metric in result.metrics.items() if is_rate(metric))
    empty = {"value": "", "interval": "", "n": ""}
    return [
        {
            "group": name.partition("/")[2].partition("=")[0] if "=" in name else "",
            "label": label_of(name),
            "help": LABELS.get(name, ("", ""))[1],
            "cells": [
                {**cell_of(name, r.metrics[name]), "n": r.metrics[name]["n"]} if name in r.metrics else empty
                for r in results
            ],
        }
        for name in names
    ]


def case_view(case: str, results: Sequence[Result], pictures: dict[str, str]) -> dict:
    """One seed or row: a column for each result that has it."""
    columns, title = [], case
    for index, result in enumerate(results):
        record = next((record for record in result.records if case_of(record) == case), None)
        if record is None:
            continue
        columns.append({"result": index, "name": result.name, **record_view(record, result.directory, pictures)})
        title = columns[0]["title"]
    return {"id": case, "title": title, "columns": columns}


def record_view(record: EpisodeRecord | RowRecord, directory: Path, pictures: dict[str, str]) -> dict:
    if isinstance(record, RowRecord):
        steps, facts = [record.step], ""
        title = record.step.context.partition("\n")[0]
    else:
        record = judge(record)
        steps, title = record.steps, record.mission
        facts = f"found {len(record.reached)} of {len(record.goals)}, {record.turns} turns"
    return {
        "title": title,
        "outcome": outcome_of(record),
        "facts": facts,
        "error": getattr(record, "error", ""),
        "steps": [step_view(number, step, directory, pictures) for number, step in enumerate(steps, 1)],
    }


def step_view(number: int, step: StepRecord, directory: Path, pictures: dict[str, str]) -> dict:
    calls = [call.as_json() for call in step.calls]
    is_as_expected = step.expected is None or step.expected == calls
    return {
        "number": number,
        "picture": inline(directory, step.picture, pictures),
        "context": step.context,
        "thought": step.thought,
        # What was read shows all of a sound answer; the raw text tells why another was not read, or was mended.
        "text": step.text if step.error or step.repairs else "",
        "calls": [call_view(call) for call in calls],
        "results": [f"{r['name'] or 'world'}: {compact(r['content'])}" for r in step.results],
        "expected": [] if is_as_expected else [call_view(call) for call in step.expected],
        "expected_thought": "" if is_as_expected else step.expected_thought,
        "verdicts": list(verdicts(step)),
    }


def verdicts(step: StepRecord) -> Iterable[tuple[str, str]]:
    """(kind good | bad | odd, text) on a turn."""
    if step.error:
        yield "bad", f"unreadable: {step.error}"
    for name in step.repairs:
        yield "odd", f"repaired: {name}"
    for call in step.calls:
        if not call.schema_ok:
            yield "bad", f"{call.name}: " + ("breaks its schema" if call.name_ok else "no such tool")
        elif call.legal is False:
            yield "bad", f"{call.name}: {REFUSALS[call.name]}"
    if step.calls and agrees(step.thought, [call.as_json() for call in step.calls]) is False:
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
        # {"direction": "UP", "steps": 2} reads well as `UP 2`; what is nested keeps its keys.
        flat = all(not isinstance(item, dict | list) for item in value.values())
        if flat and set(value) == {"direction", "steps"}:
            return f"{value['direction']} {value['steps']}"
        return ", ".join(f"{key} {compact(item)}" for key, item in value.items()) or "{}"
    if isinstance(value, list):
        return ", ".join(map(compact, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def inline(directory: Path, picture: str, pictures: dict[str, str]) -> str:
    """Put the picture into `pictures` once, by its hash; gives that key, "" if there is no picture file."""
    path = directory / picture
    if not picture or not path.is_file():
        return ""
    data = path.read_bytes()
    key = hashlib.sha256(data).hexdigest()[:12]
    pictures[key] = base64.b64encode(data).decode()
    return key
