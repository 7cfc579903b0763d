"""The command `qwenvl-agent show`: qwenvl_agent/cli/show.py."""

from qwenvl_agent.cli.show import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
