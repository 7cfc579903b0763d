"""Look at what is learnt: where rows teach to click, drawn on their pictures; tokens coloured by weight, pictures as the
model gets them; or prove the mask of every row.

qwenvl-agent show --config configs/safari_tiny.json --rows 4          # terminal and samples.html
qwenvl-agent show --config configs/safari_tiny.json --audit           # 100 % of the rows, one line
qwenvl-agent show --config configs/safari_tiny.json --json --rows 2   # one JSON object a row
"""

import argparse
from collections.abc import Sequence

from qwenvl_agent.command import Parser, bounded, command, run_command
from qwenvl_agent.config import load_config

FORMER = {"--html": "--out"}
"""Options by their names before: still understood."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, FORMER)
    parser.add_argument("--config", required=True, help="a JSON file of configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one setting")
    parser.add_argument(
        "--rows", type=bounded(int, 0), default=0, help="how many, spread over the data; 0: 4, with --json all"
    )
    parser.add_argument("--audit", action="store_true", help="check the mask of every row; status 1 if one is wrong")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of colours")
    parser.add_argument(
        "--out", default="samples.html", metavar="FILE", help="the page to write (default: samples.html)"
    )
    return parser


@command("not every row was looked at")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    config = load_config(args.config, args.set)
    from qwenvl_agent.cli import shown_rows  # torch, which takes seconds

    return shown_rows.run(config, args)


if __name__ == "__main__":
    run_command(main)
