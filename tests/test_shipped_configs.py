"""Every shipped configuration starts, saves, goes on, is exported and evaluated: the README's own commands.

In the model's place is a tiny checkpoint of the published dtype, in the data's a few rows of the config's kind. A config
that asks for ZeRO runs on two ranks with real DeepSpeed, offloading too, QLoRA with real NF4; the others in one process.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loading import load_program
from PIL import Image, ImageDraw
from transformers import AutoTokenizer

import eval as evaluation
import train
from qwenvl_agent.config import Config, load_config
from qwenvl_agent.families import FAMILIES
from qwenvl_agent.model.build import ASSETS_DIR
from qwenvl_agent.model.tiny import build_tiny_model, save_tiny
from qwenvl_agent.planning.vram import find_architecture

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# Curricula are several runs: test_shipped_curricula.py.
CONFIGS = sorted(
    path for path in (ROOT / "configs").glob("*.json") if path.stem != "schema" and not load_config(path).stages
)  # curricula: tests/test_shipped_curricula.py
ENVIRONMENT = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
STEPS = 2


def script(name: str):
    """The main function of a script."""
    return load_program(f"scripts/{name}.py").main


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """Function from a config to a tiny member of its model's family: the shipped base's tokenizer with bfloat16 weights,
    as the published checkpoints are."""
    tokenizer, made = AutoTokenizer.from_pretrained(ASSETS_DIR / "tiny"), {}

    def make(config: Config) -> Path:
        family = FAMILIES[find_architecture(config.model.path).model_type]
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family.model_type)
            save_tiny(made[family], tokenizer, build_tiny_model(tokenizer, "test", family=family).to(torch.bfloat16))
        return made[family]

    return make


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """A small dataset of each kind, by what its rows are."""
    directory = tmp_path_factory.mktemp("data")
    generate = [sys.executable, str(ROOT / "scripts/generate_oracle.py"), "--episodes", "3"]
    world = ["--set", "tile_px=16", "--set", "width=12", "--set", "height=12", "--set", "num_trees=4"]
    for task in ("agent", "perception"):
        command = [*generate, "--task", task, "--out", str(directory / task), *world]
        subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=120)
    draw_screens(directory / "computer")
    return {name: directory / name for name in ("agent", "perception", "computer")}


def draw_screens(directory: Path) -> None:
    """Six screens with one button and the click on it, in the published form."""
    directory.mkdir()
    lines = []
    for i in range(6):
        image = Image.new("RGB", (256, 256), "white")
        ImageDraw.Draw(image).rectangle((10, 20 * i, 90, 20 * i + 16), fill="gray")
        image.save(directory / f"{i}.png")
        click = {"action": "click", "x": 50, "y": 20 * i + 8, "reasoning": "The button is there."}
        row = {"instruction": "Click the button", "initial_screenshot": f"{i}.png", "next_action": click}
        lines.append(json.dumps(row) + "\n")
    (directory / "dataset.jsonl").write_text("".join(lines))


def small(config: Config, base: Path, source: Path, out: Path) -> list[str]:
    """The overrides of a short run; all that decides how weights are loaded, trained and kept stays the config's."""
    sources = [{"path": str(source), "kind": config.data.sources[0].kind}]
    settings = {
        "runs_dir": str(out / "runs"),
        "model.path": str(base),
        "data.sources": sources,
        "data.cache_dir": str(out / "cache"),
        "data.eval_fraction": 0.2,
        "train.max_steps": STEPS,
        "train.batch_size": 1,
        "train.accumulation": 2,
        "train.save_every": 1,
        "train.log_every": 1,
        "train.eval_every": 1 if config.train.patience else 0,
        "eval.episodes": 1,
        "eval.step_rows": 1,
        "eval.batch_size": 1,
        "eval.max_new_tokens": 4,
    }
    if config.eval.suite == "safari":
        settings["eval.world"] = {"width": 12, "height": 12, "num_trees": 4, "tile_px": 16, "max_turns": 1}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def launch(config: Config, *arguments: str) -> str:
    """The README's command; on a CPU, ranks of ZeRO are asked for by --use_deepspeed."""
    ranks = ["--num_processes", "2", "--use_deepspeed"] if config.train.zero_stage else ["--num_processes", "1"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", *ranks, "train.py"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return done.stdout


def forget_last_step(run_dir: Path) -> dict:
    """As if the run had been stopped after its first step; the logged values of the second."""
    checkpoints = run_dir / "checkpoints"
    shutil.rmtree(checkpoints / "step_000002")
    for link in (checkpoints / "last", checkpoints / "best"):
        link.unlink(missing_ok=True)
    (checkpoints / "last").symlink_to("step_000001")
    return logged(run_dir)


def logged(run_dir: Path) -> dict:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def wanted_dtypes(run_dir: Path, manifest: list[dict]) -> dict[str, str]:
    """What trains is float32, what is frozen has the run's dtype, or is packed in 4 bit."""
    frozen = json.loads((run_dir / "config.json").read_text())["model"]["dtype"]
    return {
        entry["name"]: "float32" if entry["trainable"] else frozen for entry in manifest if entry["dtype"] != "uint8"
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_trains_goes_on_is_exported_and_evaluated(path, base_of, data, tmp_path, capsys):
    config = load_config(path)
    kind = (
        "perception" if "perception" in path.stem else {"safari": "agent"}.get(config.data.sources[0].kind, "computer")
    )
    arguments = ["--config", str(path), *small(config, base_of(config), data[kind], tmp_path)]
    run_dir = tmp_path / "runs" / config.name
    launch(config, *arguments)
    assert list(logged(run_dir)) == [1, 2]
    manifest = json.loads((run_dir / "manifest.json").read_text())
    dtypes = wanted_dtypes(run_dir, manifest)
    assert {entry["name"]: entry["dtype"] for entry in manifest if entry["name"] in dtypes} == dtypes
    assert all(0 not in entry["shape"] for entry in manifest)

    uninterrupted = forget_last_step(run_dir)
    if config.train.zero_stage:
        launch(config, *arguments, "--resume")
        ranks = [json.loads((run_dir / f"checkpoints/last/rank_{r}.json").read_text())["ranks"] for r in range(2)]
        assert [(r["zero_stage"], r["world_size"]) for r in ranks] == [(config.train.zero_stage, 2)] * 2
    else:
        assert train.main([*arguments, "--resume"]) == 0
    assert logged(run_dir) == uninterrupted

    export = tmp_path / "export"
    assert script("merge_adapter")([str(run_dir), "--out", str(export)]) == 0
    assert json.loads((export / "config.json").read_text())["dtype"] == "bfloat16"
    suite = {"safari": "safari", "clicks": "clicks", "none": "steps"}[config.eval.suite]
    options = {
        "safari": ["--episodes", "1"],
        "clicks": ["--data", str(data["computer"]), "--rows", "1"],
        "steps": ["--rows", "1"],
    }[suite]
    assert evaluation.main(["--run", str(run_dir), "--suite", suite, *options]) == 0
    assert (run_dir / "eval" / suite / "metrics.json").is_file(), capsys.readouterr()
