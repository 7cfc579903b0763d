"""The command `qwenvl-agent check-world`: qwenvl_agent/cli/check_world.py."""

from qwenvl_agent.cli.check_world import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
