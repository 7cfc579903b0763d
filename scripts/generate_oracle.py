"""The command `qwenvl-agent record`: qwenvl_agent/cli/record.py."""

from qwenvl_agent.cli.record import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
