"""Check a world against the contract that this package plays by; what is found is printed, and the status is 1.

    qwenvl-agent check-world safari --rule tile_px=16
    qwenvl-agent check-world path/to/world.py:make_world --rule size=4 --json

What is checked: `qwenvl_agent/worlds/check.py`.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console

from qwenvl_agent.command import Parser, bounded, command, run_command
from qwenvl_agent.settings import apply_override
from qwenvl_agent.worlds import known_worlds
from qwenvl_agent.worlds.check import CHECKS, EPISODES, Subject, maker_of, run_check

FORMER = {"--set": "--rule"}
"""Options by their names before: still understood."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, FORMER)
    parser.add_argument("world", metavar="WORLD", help=f"{', '.join(known_worlds())}, or path/to/file.py:make_world")
    parser.add_argument("--rule", action="append", default=[], metavar="RULE=VALUE", help="one rule of the world")
    parser.add_argument("--episodes", type=bounded(int, 1), default=EPISODES, help="that the oracle plays")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON and nothing else")
    return parser


@command("the world is not checked to its end")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    rules: dict = {}
    for override in args.rule:
        apply_override(rules, override)
    subject = Subject(maker_of(args.world), rules, args.world, args.episodes)
    subject.world  # noqa: B018 (a name or rules that do not exist are no finding)
    console, found = Console(quiet=args.json), []
    for name, check in CHECKS.items():
        findings = run_check(name, subject)
        found += findings
        console.print(
            f"{'!!' if findings else 'ok'}  {name:12} {(check.__doc__ or '').rstrip('.')}",
            markup=False,
            highlight=False,
        )
        for finding in findings:
            console.print(f"      {finding.message}", markup=False, highlight=False, soft_wrap=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], ensure_ascii=False))
    return 1 if found else 0


if __name__ == "__main__":
    run_command(main)
