"""The command `qwenvl-agent report`: qwenvl_agent/cli/report.py."""

from qwenvl_agent.cli.report import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
