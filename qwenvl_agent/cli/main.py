"""`qwenvl-agent COMMAND ...`: each command is a module with a `main(argv)`, imported when it is named."""

import difflib
import importlib
import sys

import qwenvl_agent
from qwenvl_agent.command import run_command

COMMANDS = {
    "train": ("train_options", "train a model, in one process (several: accelerate launch -m qwenvl_agent.cli.train)"),
    "evaluate": ("evaluate", "evaluate a run, a model or a baseline; compare results (eval.py of the repository)"),
    "play": ("play", "a page to play with: missions by an agent or by hand, screenshots, two runs beside each other"),
    "predict": ("predict", "one picture and one instruction to one action, as JSON"),
    "check-data": ("check_data", "what is in a file of your own, can it be trained on, and with which settings"),
    "check-world": ("check_world", "does a world of your own keep the contract? what is found, and what to do"),
    "record": ("record", "record an oracle's episodes as training data"),
    "record-clicks": ("record_clicks", "record a person in a browser as training data"),
    "annotate": ("annotate", "mark instruction, action and target on screenshots by mouse"),
    "generate-ui": ("generate_ui", "render pages and write what can be clicked on them as data"),
    "convert": ("convert", "published screen data sets to one checked folder"),
    "augment": ("augment", "a few screens with actions to more of them"),
    "show": ("show", "look at what is learnt, token by token; --audit proves the mask of every row"),
    "plan": ("plan", "does a config fit on a GPU, and if not, what would"),
    "export": ("export", "a run as a plain folder: merged weights, processor, card"),
    "push": ("push", "an exported folder to a model hub, after a look at every file of it"),
    "report": ("report", "several results on one page"),
    "rescore": ("rescore", "metrics and page again from the records, no model"),
    "sweep": ("sweep", "runs over a grid of settings, here or on Slurm"),
    "ablate": ("ablate", "arms x seeds, paired statistics, a report"),
    "configs": ("configs", "the configs that come with the package: list them, copy them out"),
    "completion": ("completion", "completion by TAB, as a script for bash, zsh or tcsh"),
}
"""Name on the command line: (module of this folder, one line of help)."""
HELP = ("", "-h", "--help", "help")


def main() -> None:
    """The command's status ends the process; 2 if there is no such command."""
    name, *rest = sys.argv[1:] or [""]
    if name in HELP:
        print(usage())
        sys.exit(0 if name else 2)
    if name == "--version":
        print(qwenvl_agent.__version__)
        sys.exit(0)
    if name not in COMMANDS:
        sys.exit(refuse(name))
    sys.argv = [f"qwenvl-agent {name}", *rest]  # the name that argparse gives the command
    run_command(importlib.import_module(f"qwenvl_agent.cli.{COMMANDS[name][0]}").main)


def usage() -> str:
    lines = [f"  {name:15}{line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(["usage: qwenvl-agent COMMAND ...   (COMMAND --help says what it takes)", "", *lines])


def refuse(name: str) -> int:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    meant = f"did you mean {near[0]}?" if near else "qwenvl-agent --help lists them"
    print(f"error: {name!r} is no command: nothing is done; {meant}", file=sys.stderr)
    return 2
