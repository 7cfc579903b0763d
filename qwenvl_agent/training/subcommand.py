"""A command of this package as a process of its own, from inside a rank: for work that loads models or forks workers, of
which nothing is to stay in the trainer's memory, and which is nobody's rank."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

OF_LAUNCHERS = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "ACCELERATE_", "TORCHELASTIC_", "OMPI_")
"""Beginnings of variables that make a process a rank."""
ROOT = Path(__file__).parents[2]


def run_subcommand(arguments: Sequence[str], *, is_shown: bool = True) -> str:
    """Run `qwenvl-agent ARGUMENTS`; what it prints is shown, or returned. ValueError with its own message if it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(OF_LAUNCHERS)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "qwenvl_agent", *arguments],
        env=environment,
        stdout=None if is_shown else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if line.strip()]
        why = said[-1].removeprefix("error: ") if said else f"status {done.returncode}"
        raise ValueError(f"`qwenvl-agent {' '.join(arguments)}` fails: {why}")
    return done.stdout or ""
