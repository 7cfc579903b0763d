"""The command `qwenvl-agent generate-ui`: qwenvl_agent/cli/generate_ui.py."""

from qwenvl_agent.cli.generate_ui import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
