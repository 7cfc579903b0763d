"""train.py and eval.py as words of a command: a clone's files, and elsewhere the package's modules, which are the same."""

from pathlib import Path

MODULES = {"train.py": "qwenvl_agent.cli.train", "eval.py": "qwenvl_agent.cli.evaluate"}


def program(file: str) -> list[str]:
    """What `python`, or `accelerate launch`, is given to start it from this folder."""
    return [file] if Path(file).is_file() else ["-m", MODULES[file]]
