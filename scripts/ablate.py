"""The command `qwenvl-agent ablate`: qwenvl_agent/cli/ablate.py."""

from qwenvl_agent.cli.ablate import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
