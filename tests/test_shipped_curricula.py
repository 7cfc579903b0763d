"""The shipped curricula whole, by the commands of docs/CURRICULUM.md, with a tiny checkpoint in the model's place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl_agent.cli.plan import main as plan
from qwenvl_agent.config import load_config
from qwenvl_agent.training.curriculum import plan_runs
from qwenvl_agent.training.stages import is_over

ROOT = Path(__file__).parent.parent
CURRICULA = sorted((ROOT / "configs").glob("*_curriculum.json"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


def small(path: Path, out: Path) -> list[str]:
    """Overrides: few rows, two steps a run, data and runs below `out`; all else stays the config's."""
    config = load_config(path)
    world = {"width": 12, "height": 12, "num_trees": 4, "tile_px": 16, "max_turns": 2, "tell_last": True}
    settings: dict = {
        "model.path": "tiny",
        "runs_dir": str(out),
        "data.cache_dir": str(out / "cache"),
        "eval.world": world,
    }
    for key, value in {
        "train.max_steps": 2,
        "train.batch_size": 1,
        "train.log_every": 1,
        "train.save_every": 1,
    }.items():
        settings[f"stages.*.set.{key}"] = value
    for key, value in {"episodes": 1, "step_rows": 1, "batch_size": 2, "max_new_tokens": 16}.items():
        settings[f"eval.{key}"] = value
    for stage in config.stages:
        for i, _ in enumerate(stage.record):
            settings |= {f"stages.{stage.name}.record.{i}.{key}": 1 for key in ("workers",)}
            settings[f"stages.{stage.name}.record.{i}.episodes"] = 4
    settings |= moved(config, out)
    if any(stage.gate for stage in config.stages):
        settings |= {f"stages.{s.name}.gate.more_steps": 1 for s in config.stages if s.gate}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def moved(config, out: Path) -> dict:
    """Datasets of this test's own."""
    settings = {}
    for stage in config.stages:
        for i, entry in enumerate(stage.record):
            settings[f"stages.{stage.name}.record.{i}.out"] = str(out / Path(entry["out"]).name)
        for i, source in enumerate(stage.set.get("data", {}).get("sources", [])):
            settings[f"stages.{stage.name}.set.data.sources.{i}.path"] = str(out / Path(source["path"]).name)
    return settings


def launch(*arguments: str) -> str:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "train.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", CURRICULA, ids=lambda path: path.stem)
def test_a_shipped_curriculum_records_trains_and_is_planned(path, tmp_path, capsys):
    arguments = ["--config", str(path), *small(path, tmp_path)]
    assert plan([*arguments, "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    launch(*arguments)
    config = load_config(path, arguments[3::2])
    runs = plan_runs(config)
    assert all(is_over(run, 0) for run in runs) and (config.run_dir / "done.json").exists()
    assert [stage["name"] for stage in before["stages"]] == [run.config.name for run in runs]
    assert "is there" in launch(*arguments, "--resume")  # the recordings; and nothing is trained

    assert plan([*arguments, "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert [stage["steps"] for stage in after["stages"]] == [2] * len(runs)
    assert before["stages"][0]["rows"] is None and after["stages"][0]["rows"] > 0
    assert before["stages"][0]["hours"] is None and all(stage["hours"] for stage in after["stages"])
