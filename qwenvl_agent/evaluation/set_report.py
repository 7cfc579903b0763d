"""A set's table for people: in the terminal, and report.html with bars, classes of failures and a replay of each."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from qwenvl_agent.evaluation.report import PICTURE_PX, Result, cell_of, has_screenshots, record_view
from qwenvl_agent.evaluation.results import read_result
from qwenvl_agent.evaluation.suite_sets import ALL, LABELS, NOT_SHARES, TABLE, directory_of, failures
from qwenvl_agent.evaluation.suites import Suite, find_suite
from qwenvl_agent.files import read_json, write_text
from qwenvl_agent.html_templates import render_report

UNKNOWN = {"value": None}


class Figures:
    """What a set's figures are called and which are shares of 1: of the world's suite, and those of a set alone."""

    def __init__(self, about: Mapping):
        self.suite: Suite = find_suite(about["world_from"], about["world"])
        self.labels = {**self.suite.labels, **LABELS}
        self.not_shares = (*self.suite.not_shares, *NOT_SHARES)

    def heading(self, metric: str) -> str:
        return self.labels.get(metric, (metric.replace("_", " "), ""))[0]

    def cell(self, metric: str, values: dict) -> dict[str, str]:
        """Value and interval as text; a ratio is told to the hundredth, as its goal is."""
        if metric in NOT_SHARES and values["value"] is not None:
            return {"value": f"{values['value']:.2f}", "interval": f"{values['low']:.2f} .. {values['high']:.2f}"}
        return cell_of(metric, values, self.suite)

    def goal_text(self, metric: str, goal: Mapping) -> str:
        """`at least 80 %`, `at most 1.5`, `at least 80 % of usual`."""
        is_plain = metric in self.not_shares and not goal.get("of")
        limits = [(words, goal[side]) for side, words in (("least", "at least"), ("most", "at most")) if side in goal]
        said = " and ".join(
            f"{words} {limit:g}" if is_plain else f"{words} {100 * limit:g} %" for words, limit in limits
        )
        return said + (f" of {goal['of']}" if goal.get("of") else "")


VERDICTS = {True: "met", False: "missed", None: ""}


def set_table(table: dict) -> Table:
    """Suites down, figures across: value, interval, and whether its goal is met; success of the others beside."""
    about, rows = table["about"], table["suites"]
    figures, players = Figures(about), players_of(rows)
    shown = Table(title=f"{about['set']}: {about['policy']}, 95 % intervals")
    shown.add_column("", no_wrap=True)
    for metric in about["columns"]:
        shown.add_column(figures.heading(metric), justify="right")
    for heading in (*players, "n"):
        shown.add_column(heading, justify="right")
    for name, row in rows.items():
        found = [figures.cell(metric, row["figures"].get(metric, UNKNOWN)) for metric in about["columns"]]
        verdicts = [VERDICTS[row["goals"].get(metric, {}).get("is_met")] for metric in about["columns"]]
        cells = [f"{c['value']} {verdict}\n{c['interval']}" for c, verdict in zip(found, verdicts, strict=True)]
        cells += [figures.cell("success_rate", row["beside"].get(player, UNKNOWN))["value"] for player in players]
        shown.add_row(name, *cells, str(row["seeds"]["count"]))
    shown.caption = "\n".join(notes_on_unseen(rows))
    return shown


def players_of(rows: Mapping[str, dict]) -> list[str]:
    return list(dict.fromkeys(player for row in rows.values() for player in row["beside"]))


def notes_on_unseen(rows: Mapping[str, dict]) -> Iterator[str]:
    """Of each suite that says to be unseen, whether the run's recordings show it."""
    for name, row in rows.items():
        if row["unseen"] is not None:
            yield f"{name}: {unseen_text(row['unseen'])}"


def unseen_text(seen: str) -> str:
    return f"not unseen: {seen}" if seen else "in none of the run's recordings"


# the page


def write_set_report(directory: Path) -> None:
    """report.html of a set's folder, from suites.json and the results beside it."""
    table = read_json(directory / TABLE)
    about, rows = table["about"], table["suites"]
    figures, results = Figures(about), [result_of(directory, name) for name in rows if name != ALL]
    whole_first = {name: rows[name] for name in sorted(rows, key=lambda name: name != ALL)}
    pictures: dict[str, str] = {}
    replays = [replay(name, result, case, pictures) for name, result, case in firsts(results)]
    page = render_report(
        "suites.html.jinja",
        about=about,
        title=figures.suite.title,
        bars=[bar(directory, name, row, figures) for name, row in rows.items()],
        columns=[
            {"name": figures.heading(m), "help": figures.labels.get(m, ("", ""))[1], "metric": m}
            for m in about["columns"]
        ],
        lines=[line(name, row, about["columns"], figures) for name, row in rows.items()],
        classes=class_rows(whole_first, figures.suite.outcomes),
        names=list(whole_first),
        num_failures=[sum(failures(row).values()) for row in whole_first.values()],
        num_episodes=[row["seeds"]["count"] for row in whole_first.values()],
        replays=replays,
        outcomes=figures.suite.outcomes,
        expected=figures.suite.expected,
        pictures=pictures,
        picture_px=PICTURE_PX[any(map(has_screenshots, results))],
    )
    write_text(directory / "report.html", page)


def result_of(directory: Path, name: str) -> Result:
    """Of the one in focus; its name is the suite's."""
    place = directory_of(directory, name)
    metrics, records, suite = read_result(place)
    return Result(name, place, metrics, records, suite)


def bar(directory: Path, name: str, row: dict, figures: Figures) -> dict:
    """Success of the one in focus, with the others' as ticks."""
    metric = row["figures"]["success_rate"]
    goal = row["goals"].get("success_rate", {})
    return {
        "name": name,
        "title": row["title"],
        "page": f"{name}/report.html" if name != ALL else "",
        **metric,
        **figures.cell("success_rate", metric),
        "share": metric["value"] or 0.0,
        "verdict": VERDICTS[goal.get("is_met")],
        "goal": figures.goal_text("success_rate", goal) if goal else "",
        "beside": [
            {"name": player, "share": found["value"] or 0.0, **figures.cell("success_rate", found)}
            for player, found in row["beside"].items()
        ],
        "unseen": None if row["unseen"] is None else unseen_text(row["unseen"]),
        "is_seen": bool(row["unseen"]),
    }


def line(name: str, row: dict, columns: Sequence[str], figures: Figures) -> dict:
    """A suite's row of the table of figures."""
    cells = []
    for metric in columns:
        goal = row["goals"].get(metric, {})
        cell = figures.cell(metric, row["figures"].get(metric, UNKNOWN))
        cells.append(
            {
                **cell,
                "verdict": VERDICTS[goal.get("is_met")],
                "goal": figures.goal_text(metric, goal) if goal else "",
            }
        )
    return {"name": name, "title": row["title"], "cells": cells}


def class_rows(rows: Mapping[str, dict], outcomes: Mapping[str, str]) -> list[dict]:
    """A row for each class of failures that occurs, a number for each suite; their sum is that of the failures."""
    found = dict.fromkeys(name for row in rows.values() for name in failures(row))
    names = [*(name for name in outcomes if name in found), *(name for name in found if name not in outcomes)]
    counted = [
        {
            "name": name,
            "text": outcomes.get(name, name.replace("_", " ")),
            "numbers": [failures(row).get(name, 0) for row in rows.values()],
        }
        for name in names
    ]
    return sorted(counted, key=lambda one: -one["numbers"][0])


def firsts(results: Sequence[Result]) -> list[tuple[str, Result, str]]:
    """(class, result, case) of the first failure of each class, and of the first success."""
    found: dict[str, tuple[str, Result, str]] = {}
    for result in results:
        for case, outcome in result.outcomes.items():
            found.setdefault(outcome, (outcome, result, case))
    order = list(results[0].suite.outcomes)
    return sorted(
        found.values(),
        key=lambda one: (one[1].successes[one[2]], order.index(one[0]) if one[0] in order else len(order)),
    )


def replay(outcome: str, result: Result, case: str, pictures: dict[str, str]) -> dict:
    view = record_view(case, result, pictures)
    return {
        "outcome": outcome,
        "suite": result.name,
        "case": case,
        "column": {"result": 0, "name": result.name, **view},
    }
