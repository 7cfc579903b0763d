"""Options of the commands: read before anything heavy is loaded, one name for one thing, each with its meaning."""

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
