"""The command `qwenvl-agent export`: qwenvl_agent/cli/export.py."""

from qwenvl_agent.cli.export import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
