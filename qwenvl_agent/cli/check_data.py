"""What is in this file, can it be trained on, and with which settings? The first command for data of your own.

    qwenvl-agent check-data my_data.jsonl                                  # or .json, .parquet, a folder
    qwenvl-agent check-data my_data.jsonl --config configs/safari_2b.json  # held against a config's budget, with its tokenizer
    qwenvl-agent check-data screens/ --config own_screens_tiny --write own.json    # a whole config, ready to train

Says what the file is by its fields (its units are never guessed: --unit), shows the first row as the model will see it
with what is learned marked by `>`, counts rows and rejects by reason with their places, measures tokens against the
budget, and prints the lines of a config that fit. It reads with training's own reader, into training's own cache.

The exit status is 0 for data that can be trained on as it is; 1 if more than data.max_rejected of it is rejected, if
nothing is left, or if it is a published layout to convert first; 2 if it cannot be read at all.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from qwenvl_agent.command import Parser, bounded, command, run_command
from qwenvl_agent.config import SourceConfig
from qwenvl_agent.settings import choices_of, hints_of

KINDS = choices_of(hints_of(SourceConfig)["kind"])


@command("the file is not checked to its end")
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    from qwenvl_agent.cli import checked_data  # what reads Arrow files, which takes a second

    return checked_data.run(args)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument(
        "data", type=Path, metavar="DATA", help="a .jsonl, .json or .parquet file, or a folder with one"
    )
    parser.add_argument("--kind", choices=KINDS, default="", help="what the file is, instead of a look at its fields")
    parser.add_argument("--unit", default="", help="of places in kind computer: px, fraction, percent or thousand")
    parser.add_argument("--box-unit", default="", help="of boxes in kind computer, if it is another")
    parser.add_argument("--box-order", default="", help="of boxes in kind computer: xyxy or xywh")
    parser.add_argument("--world", default="", help="of recorded turns: data.sources[].world")
    parser.add_argument(
        "--config", default="", help="a config to hold it against: a file, or the name of a shipped one"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one setting")
    parser.add_argument("--model", default="", help="whose tokenizer counts; default: the config's, else an estimate")
    parser.add_argument(
        "--max-rejected", type=bounded(float, 0, 1), help="share that may be rejected; default: data.max_rejected"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write --config with the lines that fit as a new config"
    )
    parser.add_argument("--json", action="store_true", help="everything as one JSON object, for programs")
    return parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.write and not args.config:
        parser.error(
            "--write without --config: there is no config to begin with; name one (qwenvl-agent configs lists)"
        )
    if args.write and args.write.exists():
        parser.error(f"--write {args.write} exists: it would be lost; name a new file")
    return args


if __name__ == "__main__":
    run_command(main)
