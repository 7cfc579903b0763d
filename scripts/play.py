"""The command `qwenvl-agent play`: qwenvl_agent/cli/play.py."""

from qwenvl_agent.cli.play import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
