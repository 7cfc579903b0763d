"""`python -m qwenvl_agent.predict`, the command `qwenvl-agent predict`: qwenvl_agent/cli/predict.py."""

from qwenvl_agent.cli.predict import main
from qwenvl_agent.command import run_command

if __name__ == "__main__":
    run_command(main)
