"""Put several results into one page: figures, paired tests, the turns of every policy side by side on the same seeds.

qwenvl-agent report runs/safari_2b/eval/safari runs/oracle/eval/safari --out report.html
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from qwenvl_agent.command import Parser, command, run_command
from qwenvl_agent.evaluation.report import compare, write_report


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument(
        "results", type=Path, nargs="+", metavar="DIR", help="results of eval.py, the one in focus first"
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the comparison and where the page is, as JSON")
    return parser


@command("no report was written")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    write_report(args.out, args.results)
    print(json.dumps({"report": str(args.out), **compare(args.results)}) if args.json else args.out)
    return 0


if __name__ == "__main__":
    run_command(main)
