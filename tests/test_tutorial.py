"""The tutorial's scripts run whole in small, each in a process of its own, as a reader would start them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "tutorial"
SCRIPTS = [path for path in sorted(TUTORIAL.glob("*.py")) if "# %%" in path.read_text(encoding="utf-8")]


def test_each_script_is_in_the_table():
    table = (TUTORIAL / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in SCRIPTS] == ["own_screenshots.py", "own_world.py", "safari.py"]
    assert all(f"[{path.name}]({path.name})" in table and f"{path.name} --small" in table for path in SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_cells_are_marked_and_prose_is_prose(script):
    cells = re.split(r"(?m)^# %%", script.read_text(encoding="utf-8"))
    assert cells[0] == "" and len(cells) >= 8
    prose = [cell for cell in cells if cell.startswith(" [markdown]")]
    assert all(line.startswith("#") for cell in prose for line in cell.strip().splitlines()[1:])


def test_the_safari_is_recorded_as_the_demo_does():
    """One recipe: the tutorial's options are the demo's."""
    demo = (ROOT / "scripts" / "demo.sh").read_text(encoding="utf-8")
    recorded = demo[demo.index("generate_oracle.py") :].split("\nrun ")[0].replace("\\\n", " ")
    oracle = re.search(r"^oracle=\((.*)\)$", demo, re.M)
    words = set(shlex.split(recorded)) - {"${reference[@]}"} | {f"--oracle={word}" for word in oracle[1].split()}
    text = (TUTORIAL / "safari.py").read_text(encoding="utf-8")
    ours = set(shlex.split(re.search(r'RECORD = """(.*?)"""', text, re.S)[1]))
    of_the_script = {
        "generate_oracle.py",
        "--config",
        "$config",
        "--out",
        "generated/safari_tiny",
        "--episodes",
        "7500",
    }
    assert ours == words - of_the_script - {"--overwrite"}
    assert "else (7500, 800, 200)" in text


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_runs_in_small(script, tmp_path):
    for name in ("docs", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script.relative_to(ROOT)), "--small"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert list(tmp_path.glob("generated/tutorial/*/eval/**/report.html"))
