"""The command `qwenvl-agent rescore`: qwenvl_agent/cli/rescore.py."""

from qwenvl_agent.cli.rescore import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
