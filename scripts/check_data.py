"""The command `qwenvl-agent check-data`: qwenvl_agent/cli/check_data.py."""

from qwenvl_agent.cli.check_data import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
