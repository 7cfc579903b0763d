"""Results on disk. Metrics come from records alone, so `scripts/rescore.py` needs no model.

    runs/NAME/eval/safari/
        records.jsonl   one episode (or row, or screen) a line
        metrics.json    {"about": ..., "success_rate": {"value", "low", "high", "n"}, ..., "end_reasons": {...}}
        report.html     for people
        pictures/
        unfinished/     of an evaluation that has not come to its end (`unfinished.py`)

`about` says what was evaluated and how: `suite` its name, and for a world `world` its rules and `world_from` where it
was found, so that the result can be scored and shown again.
"""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import qwenvl_agent
from qwenvl_agent.evaluation.figures import metrics_json
from qwenvl_agent.evaluation.suites.registry import suite_of
from qwenvl_agent.evaluation.suites.suite import Suite
from qwenvl_agent.files import write_json
from qwenvl_agent.records import read_records, write_records
from qwenvl_agent.worlds.world import Metrics

PACKAGES = ("torch", "transformers", "numpy")
RENAMED = {"false_declaration_rate": "harm_rate"}
"""Metrics of version 0.1 -> their names now."""


def describe(suite: str, policy: str, **more) -> dict:
    """What every result says about itself; `more` adds seeds, config, hashes, processor size."""
    packages = {name: version(name) for name in PACKAGES}
    versions = {"qwenvl_agent": qwenvl_agent.__version__, "python": platform.python_version(), **packages}
    return {"suite": suite, "policy": policy, **more, "versions": versions}


def write_result(directory: Path, about: dict, records: Sequence, metrics: Metrics) -> None:
    """records.jsonl and metrics.json; `about` says what was evaluated and how."""
    directory.mkdir(parents=True, exist_ok=True)
    write_records(directory / "records.jsonl", records)
    write_metrics(directory, about, metrics)


def write_metrics(directory: Path, about: dict, metrics: Metrics) -> None:
    write_json(directory / "metrics.json", {"about": about, **metrics_json(metrics)})


def read_result(directory: Path) -> tuple[dict, list, Suite]:
    """(metrics.json, the records, their suite) of a result folder."""
    path = directory / "metrics.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        name = result["about"]["suite"]
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, so {directory} is no result of eval.py; name another folder") from None
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result of eval.py ({error!r}); evaluate again") from None
    try:
        suite = suite_of(result["about"])
    except ValueError as error:
        source = result["about"].get("world_from", name)
        raise ValueError(
            f"{path}: its suite {name!r} was found as {source!r} and cannot be made now ({error}): the result cannot be "
            "scored or shown; put that back, or write where it is now into about.world_from"
        ) from None
    result = {RENAMED.get(key, key): value for key, value in result.items()}
    return result, read_records(directory / "records.jsonl", suite.record), suite
