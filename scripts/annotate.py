"""The command `qwenvl-agent annotate`: qwenvl_agent/cli/annotate.py."""

from qwenvl_agent.cli.annotate import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
