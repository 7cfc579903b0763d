"""Suites: what an evaluation asks and measures. One object each (`suite.py`), found by name (`registry.py`)."""

from qwenvl_agent.evaluation.suites.episodes import Episodes
from qwenvl_agent.evaluation.suites.registry import find_suite, is_world, suite_for, suite_of
from qwenvl_agent.evaluation.suites.suite import Evaluation, Options, Suite, Work, pick_rows
from qwenvl_agent.evaluation.suites.training import (
    check_held_out,
    check_suite,
    evaluate,
    rule_differences,
    training_suite,
)

__all__ = [
    "Episodes",
    "Evaluation",
    "Options",
    "Suite",
    "Work",
    "check_held_out",
    "check_suite",
    "evaluate",
    "find_suite",
    "is_world",
    "pick_rows",
    "rule_differences",
    "suite_for",
    "suite_of",
    "training_suite",
]
