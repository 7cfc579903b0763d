"""From a folder of screenshots and a list written by hand to an agent: the commands of docs/DATA.md, from an empty folder."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from qwenvl_agent.cli.check_data import main as check_data

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "own_screenshots"
STEPS = "--set train.max_steps=2 --set train.warmup_fraction=0"
COMMANDS = re.compile(r"```bash own screenshots\n(.*?)```", re.S)


def labels() -> list[dict]:
    return json.loads((EXAMPLE / "labels.json").read_text(encoding="utf-8"))


def commands() -> list[list[str]]:
    """As docs/DATA.md has them, each as a program of this interpreter."""
    (text,) = COMMANDS.findall((ROOT / "docs" / "DATA.md").read_text(encoding="utf-8"))
    lines = [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]
    assert all(words[0] == "qwenvl-agent" for words in lines)
    return [[sys.executable, "-m", "qwenvl_agent", *words[1:]] for words in lines]


@pytest.fixture
def screens(tmp_path, monkeypatch) -> Path:
    """The example's list with plain pictures of the screens' size, alone in a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "screens").mkdir()
    shutil.copyfile(EXAMPLE / "labels.json", tmp_path / "screens" / "labels.json")
    for i, name in enumerate(sorted({label["screenshot"] for label in labels()})):
        Image.new("RGB", (1280, 720), (20 * i, 90, 200)).save(tmp_path / "screens" / name)
    return tmp_path


def test_every_label_lies_on_an_element_of_its_page():
    """By the style of the pages: each element has its place and size written at it."""
    place = re.compile(r"left:(\d+)px;top:(\d+)px;width:(\d+)px;height:(\d+)px")
    for label in labels():
        page = (EXAMPLE / "pages" / label["screenshot"]).with_suffix(".html").read_text(encoding="utf-8")
        boxes = [tuple(map(int, found)) for found in place.findall(page)]
        x, y = label["action"]["x"], label["action"]["y"]
        assert any(left < x < left + w and top < y < top + h for left, top, w, h in boxes), label


def test_the_published_model_gets_the_same_folder_by_the_same_command(screens, capsys):
    words = ["screens", "--config", "computer_use_2b", "--model", "./not_here", "--write", "own_2b.json", "--json"]
    assert check_data(words) == 0
    written = json.loads((screens / "own_2b.json").read_text(encoding="utf-8"))
    assert written["data"]["sources"] == [{"path": "screens/labels.json", "kind": "computer"}]
    assert written["model"]["method"] == "qlora" and written["name"] == "own_2b"
    (size,) = json.loads(capsys.readouterr().out)["pictures"]
    assert (size["shown_width"], size["shown_height"], size["tokens"]) == (1280, 704, 880)


@pytest.mark.slow
def test_four_commands_lead_from_a_folder_to_a_drawn_prediction_and_the_measure(screens):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert len(commands()) == 4
    for words in commands():
        more = shlex.split(STEPS) if "train" in words else []
        done = subprocess.run([*words, *more], capture_output=True, text=True, env=environment, timeout=600)
        assert done.returncode in ((0, 1) if "predict" in words else (0,)), done.stderr  # two steps teach no call
    assert (screens / "own.json").is_file()
    with Image.open(screens / "prediction.png") as drawn:
        assert drawn.size == (1280, 720)
    metrics = json.loads((screens / "runs/own/eval/clicks/metrics.json").read_text(encoding="utf-8"))
    assert "near_rate" in json.dumps(metrics)
