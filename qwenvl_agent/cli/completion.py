"""Completion of commands, options and files by TAB, as a script for your shell.

    qwenvl-agent completion bash > ~/.local/share/bash-completion/completions/qwenvl-agent
    qwenvl-agent completion zsh > ~/.zfunc/_qwenvl-agent          # with fpath+=~/.zfunc before compinit in ~/.zshrc
    qwenvl-agent completion tcsh > ~/.qwenvl-agent.csh            # and source it in ~/.tcshrc

It is made of the commands' own options, once; make it again after an update.
"""

import argparse
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import shtab

from qwenvl_agent.command import Parser, command, run_command

PROGRAM = "qwenvl-agent"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="the one that reads it")
    return parser


@command("nothing was printed")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    from qwenvl_agent.cli.main import COMMANDS  # which names this module

    print(shtab.complete(whole_parser(COMMANDS), args.shell))
    return 0


def whole_parser(commands: Mapping[str, tuple[str, str]]) -> argparse.ArgumentParser:
    """All commands as one; values that are paths are completed as such."""
    whole = argparse.ArgumentParser(PROGRAM)
    subparsers = whole.add_subparsers()
    for name, (module, line) in commands.items():
        own = importlib.import_module(f"qwenvl_agent.cli.{module}").build_parser()
        for action in own._actions:
            if action.type is Path or action.dest == "config":
                action.complete = shtab.FILE
        subparsers.add_parser(name, help=line, parents=[own], add_help=False, conflict_handler="resolve")
    return whole


if __name__ == "__main__":
    run_command(main)
