"""Compute metrics.json and report.html again from records.jsonl; needs no model.

qwenvl-agent rescore runs/*/eval/safari runs/*/eval/difficulty
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from qwenvl_agent.command import Parser, command, run_command
from qwenvl_agent.evaluation.report import write_report
from qwenvl_agent.evaluation.results import read_result, write_metrics
from qwenvl_agent.evaluation.set_report import write_set_report
from qwenvl_agent.evaluation.suite_sets import TABLE, is_set, results_of, rewrite_table
from qwenvl_agent.files import read_json


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="DIR", help="results of eval.py, sets of suites too")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON and nothing else")
    return parser


@command("results not yet named are as they were")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    written = [
        path for directory in args.results for path in (rescore_set if is_set(directory) else rescore)(directory)
    ]
    if args.json:
        print(json.dumps([{"path": str(path), **read_json(path)} for path in written]))
    else:
        print(*written, sep="\n")
    return 0


def rescore(directory: Path) -> list[Path]:
    """Replace what follows from the records; what the result says about itself stays. What was written."""
    result, records, suite = read_result(directory)
    write_metrics(directory, result["about"], suite.metrics(records))
    write_report(directory / "report.html", [directory])
    return [directory / "metrics.json"]


def rescore_set(directory: Path) -> list[Path]:
    """Every result of a set of suites, then the table over them."""
    written = [path for result in results_of(directory) for path in rescore(result)]
    rewrite_table(directory)
    write_set_report(directory)
    return [*written, directory / TABLE]


if __name__ == "__main__":
    run_command(main)
