"""Compute metrics.json and report.html again from records.jsonl; needs no model.

qwenvl-agent rescore runs/*/eval/safari runs/*/eval/difficulty
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from qwenvl_agent.command import command, run_command
from qwenvl_agent.evaluation.report import write_report
from qwenvl_agent.evaluation.results import read_result, write_metrics
from qwenvl_agent.evaluation.set_report import write_set_report
from qwenvl_agent.evaluation.suite_sets import TABLE, is_set, results_of, rewrite_table


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", metavar="DIR", help="results of eval.py, sets of suites too")
    return parser


@command("results not yet named are as they were")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    for directory in args.results:
        (rescore_set if is_set(directory) else rescore)(directory)
    return 0


def rescore(directory: Path) -> None:
    """Replace what follows from the records; what the result says about itself stays."""
    result, records, suite = read_result(directory)
    write_metrics(directory, result["about"], suite.metrics(records))
    write_report(directory / "report.html", [directory])
    print(directory / "metrics.json")


def rescore_set(directory: Path) -> None:
    """Every result of a set of suites, then the table over them."""
    for result in results_of(directory):
        rescore(result)
    rewrite_table(directory)
    write_set_report(directory)
    print(directory / TABLE)


if __name__ == "__main__":
    run_command(main)
