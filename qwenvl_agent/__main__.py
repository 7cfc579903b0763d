"""`python -m qwenvl_agent COMMAND ...`, as `qwenvl-agent COMMAND ...`."""

from qwenvl_agent.cli.main import main

if __name__ == "__main__":
    main()
