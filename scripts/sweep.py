"""The command `qwenvl-agent sweep`: qwenvl_agent/cli/sweep.py."""

from qwenvl_agent.cli.sweep import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
