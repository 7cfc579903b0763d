"""The options of train.py, apart from it: who asks for --help, or has mistyped one, does not wait for torch."""

import argparse
import importlib
from collections.abc import Sequence

from qwenvl_agent.command import Parser, run_command
from qwenvl_agent.config import Config
from qwenvl_agent.settings_reference import help_of

DESCRIPTION = """Fine-tune Qwen3-VL into an agent.

    accelerate launch train.py --config configs/safari_2b.json
    accelerate launch train.py --config configs/safari_2b.json --set train.learning_rate=1e-4 --resume

Outputs go to runs/NAME. `touch runs/NAME/STOP`, SIGTERM or Ctrl-C saves a checkpoint and ends with status 0.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """`qwenvl-agent train`."""
    read_options(argv)
    train = importlib.import_module("qwenvl_agent.cli.train").main
    if argv is None:
        run_command(train)  # which answers signals in its own way
    return train(argv)


def read_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.accept_changes and not args.resume:
        parser.error("--accept-changes without --resume: there is nothing that could have changed; give both")
    return args


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(DESCRIPTION)
    parser.epilog = f"settings, for the JSON file and --set (docs/CONFIG.md):\n{help_of(Config)}"
    parser.add_argument("--config", required=True, help="a JSON file of configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one setting")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint, if it has one")
    parser.add_argument(
        "--accept-changes", action="store_true", help="resume although data, prompt or vision settings are others now"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the run of that name first")
    return parser
