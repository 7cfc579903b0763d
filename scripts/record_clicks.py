"""The command `qwenvl-agent record-clicks`: qwenvl_agent/cli/record_clicks.py."""

from qwenvl_agent.cli.record_clicks import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
