"""Options of the commands: read before anything heavy is loaded, one name for one thing, each with its meaning."""

import argparse
import importlib
import subprocess
import sys

import pytest

from qwenvl_agent.cli.main import COMMANDS

HEAVY = ("torch", "torchvision", "transformers", "accelerate", "peft", "deepspeed", "datasets", "scipy", "matplotlib")
HEAVY += ("pandas", "playwright", "tensorboard", "gradio", "trackio", "wandb", "huggingface_hub")
PARSERS = {name: f"qwenvl_agent.cli.{module}" for name, (module, _) in COMMANDS.items()}

WATCH = """
import importlib, sys
for name in sys.argv[1].split(","):
    module = importlib.import_module(name)
    module.build_parser().format_help()
    loaded = [heavy for heavy in sys.argv[2].split(",") if heavy in sys.modules]
    assert not loaded, f"{name} loads {loaded}"
"""


def parsers():
    return {name: importlib.import_module(module).build_parser() for name, module in PARSERS.items()}


def test_help_loads_nothing_that_takes_seconds():
    """All in one fresh process: the first command that loads something heavy is named."""
    command = [sys.executable, "-c", WATCH, ",".join(PARSERS.values()), ",".join(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "program", [["train.py"], ["eval.py"], ["-m", "qwenvl_agent.cli.train"], ["scripts/show_batch.py"]]
)
def test_scripts_answer_help_before_torch_is_loaded(program):
    done = subprocess.run([sys.executable, "-X", "importtime", *program, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: ")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert loaded & set(HEAVY) == set() and "qwenvl_agent" in loaded


def test_a_mistaken_option_of_train_is_said_before_torch_is_loaded():
    code = "import runpy, sys\nsys.argv = ['train.py', '--confg', 'x']\n"
    code += "try: runpy.run_path('train.py', run_name='__main__')\nexcept SystemExit as e: print(e.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2 False\n", done.stderr


def options():
    """(command, action) of every option of every command."""
    for name, parser in parsers().items():
        yield from ((name, action) for action in parser._actions if not isinstance(action, argparse._HelpAction))


def test_every_option_says_what_it_is():
    assert [(name, action.option_strings or action.dest) for name, action in options() if not action.help] == []


def test_a_name_takes_the_same_kind_of_value_everywhere():
    """A number in one command and a file in another would be two things."""
    kinds: dict[str, dict[tuple, str]] = {}
    for name, action in options():
        form = (getattr(action.type, "__name__", "str") if action.type else "str", action.nargs == 0)
        kinds.setdefault(action.dest, {}).setdefault(form, name)
    texts = [("Path", False), ("str", False)]  # a path is text to some: hub ids, names of shipped configs
    several = {dest: found for dest, found in kinds.items() if len(found) > 1 and not set(found) <= set(texts)}
    assert several == {}


SAME_WORDS = ("set", "json", "overwrite", "device", "rule", "unit", "box_unit", "box_order")


def test_what_many_commands_share_is_said_alike():
    """Its metavar and whether it may be repeated."""
    for dest in SAME_WORDS:
        forms = {
            (type(action).__name__, action.metavar, action.nargs) for _, action in options() if action.dest == dest
        }
        assert len(forms) == 1, (dest, forms)


FORMER = {
    "evaluate": (["--policy", "oracle", "--world", "width=20", "--world=height=9"], "rule", ["width=20", "height=9"]),
    "record": (["--out", "x", "--episodes", "1", "--set", "width=20"], "rule", ["width=20"]),
    "check-world": (["safari", "--set", "width=20"], "rule", ["width=20"]),
    "generate-ui": (["--out", "x", "--pages", "1", "--draw", "2"], "draw_first", 2),
    "sweep": (["x.json", "--limit", "2"], "max_running", 2),
    "ablate": (["x.json", "--limit", "2"], "max_running", 2),
    "plan": (["--config", "x", "--gpu", "80"], "gpu_gb", 80),
    "show": (["--config", "x", "--html", "a.html"], "out", "a.html"),
    "record-clicks": (["x", "--out", "y", "--size", "640", "480"], "viewport", [640, 480]),
}


@pytest.mark.parametrize("name", FORMER)
def test_former_names_of_options_are_understood_and_said(name, capsys):
    argv, dest, value = FORMER[name]
    assert getattr(parsers()[name].parse_args(argv), dest) == value
    former = next(word for word in argv if word.partition("=")[0] in parsers()[name].former).partition("=")[0]
    assert f"note: {former} is --{dest.replace('_', '-')} now\n" in capsys.readouterr().err
    assert not any(former in action.option_strings for action in parsers()[name]._actions)
