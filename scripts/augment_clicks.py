"""The command `qwenvl-agent augment`: qwenvl_agent/cli/augment.py."""

from qwenvl_agent.cli.augment import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
