"""The shipped curricula whole, with a tiny checkpoint in the model's place: the 2B's by the command of docs/CURRICULUM.md."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwenvl_agent.cli.plan import main as plan
from qwenvl_agent.config import load_config
from qwenvl_agent.training.curriculum import plan_runs
from qwenvl_agent.training.stages import is_over

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
DOCUMENT = ROOT / "docs" / "CURRICULUM.md"
SMALL = {
    "stages.*.set.train.max_steps": 2,
    "train.batch_size": 1,
    "eval.world.max_turns": 2,
    "eval.episodes": 1,
    "eval.step_rows": 1,
    "eval.max_new_tokens": 16,
}
TINY_SETTINGS = {
    "safari_tiny_curriculum": {
        "stages.perception.record.0.episodes": 4,
        "stages.agent.record.0.episodes": 4,
        "stages.agent.gate.more_steps": 1,
        "stages.own.own_states.episodes": 2,
    },
    "safari_tiny_full": {f"stages.agent.record.{index}.episodes": 4 for index in range(3)},
}


def documented() -> list[str]:
    """The arguments of train.py in the document's command."""
    text = DOCUMENT.read_text(encoding="utf-8")
    (block,) = [part for part in text.split("```bash\n")[1:] if "model.path=tiny" in part.split("```")[0]]
    words = shlex.split(block.split("```")[0].replace("\\\n", " ").replace("REPO", str(ROOT)))
    return words[words.index(str(ROOT / "train.py")) + 1 :]


def command(arguments: list[str]) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--main_process_port", "0"]
    return [*launcher, str(ROOT / "train.py"), *arguments]


def launch(folder: Path, *arguments: str) -> str:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        command([*arguments]), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / "last" / "model" / "adapter_model.safetensors")


def test_the_2bs_curriculum_goes_on_to_the_bit_with_a_tiny_checkpoint_in_its_place(tmp_path):
    arguments = documented()
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    launch(whole, *arguments)
    names = [run.config.name for run in plan_runs(load_config(arguments[1], arguments[3::2]))]
    assert names == ["perception", "agent", "own_1", "own_2"]

    halved.mkdir()
    run_dir = halved / "runs" / "safari_2b_curriculum"
    process = subprocess.Popen(command(arguments), cwd=halved, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while not (run_dir / "own_1" / "data" / "manifest.json").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    while "is alive" in (
        said := try_to_go_on(halved, arguments)
    ):  # the launcher is dead, the trainer ends after a step
        time.sleep(1)
    assert "done: runs/safari_2b_curriculum" in said
    for name in names:
        ours, wanted = (weights(folder / "runs/safari_2b_curriculum" / name) for folder in (halved, whole))
        assert ours.keys() == wanted.keys() and all(torch.equal(ours[key], wanted[key]) for key in wanted), name


def try_to_go_on(folder: Path, arguments: list[str]) -> str:
    resumed = [*command(arguments), "--resume"]
    done = subprocess.run(resumed, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    return done.stdout + done.stderr


def test_all_curricula_are_tried():
    paths = [path for path in (ROOT / "configs").glob("*.json") if path.stem != "schema" and load_config(path).stages]
    assert {path.stem for path in paths} == {"safari_2b_curriculum", *TINY_SETTINGS}


@pytest.mark.parametrize("name", TINY_SETTINGS)
def test_a_tiny_curriculum_records_trains_and_is_planned(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path, small = ROOT / "configs" / f"{name}.json", SMALL | TINY_SETTINGS[name]
    overrides = [word for key, value in small.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    arguments = ["--config", str(path), *overrides]
    assert plan([*arguments, "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    launch(tmp_path, *arguments)
    config = load_config(path, overrides[1::2])
    runs = plan_runs(config)
    assert all(is_over(run, 0) for run in runs) and (config.run_dir / "done.json").exists()
    assert [stage["name"] for stage in before["stages"]] == [run.config.name for run in runs]
    assert "is there" in launch(tmp_path, *arguments, "--resume")  # the recordings; and nothing is trained

    assert plan([*arguments, "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert [stage["steps"] for stage in after["stages"]] == [2] * len(runs)
    assert before["stages"][0]["rows"] is None and after["stages"][0]["rows"] > 0
    assert before["stages"][0]["hours"] is None and after["stages"][0]["hours"] > 0
