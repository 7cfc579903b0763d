"""Compute metrics.json and report.html again from records.jsonl; needs no model.

qwenvl-agent rescore runs/*/eval/safari
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from qwenvl_agent.command import command, run_command
from qwenvl_agent.evaluation.report import write_report
from qwenvl_agent.evaluation.results import read_result, write_metrics


@command("results not yet named are as they were")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", metavar="DIR", help="results of eval.py")
    args = parser.parse_args(argv)
    for directory in args.results:
        rescore(directory)
    return 0


def rescore(directory: Path) -> None:
    """Replace what follows from the records; what the result says about itself stays."""
    result, records, suite = read_result(directory)
    write_metrics(directory, result["about"], suite.metrics(records))
    write_report(directory / "report.html", [directory])
    print(directory / "metrics.json")


if __name__ == "__main__":
    run_command(main)
