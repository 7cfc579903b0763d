"""The command `qwenvl-agent convert`: qwenvl_agent/cli/convert.py."""

from qwenvl_agent.cli.convert import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
