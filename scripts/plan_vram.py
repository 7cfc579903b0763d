"""The command `qwenvl-agent plan`: qwenvl_agent/cli/plan.py."""

from qwenvl_agent.cli.plan import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
