"""The animated picture of the README: drawn from a result's records, two pictures a turn."""

from pathlib import Path

import pytest
from loading import load_program
from PIL import Image

import eval as evaluation
from qwenvl_agent.evaluation.results import read_result

WORLD = ("width=12", "height=12", "num_trees=4", "tile_px=16", "num_targets=[1, 0, 0]", "plain_missions=true")


@pytest.fixture(scope="module")
def script():
    return load_program("scripts/draw_replay.py")


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Path:
    """An oracle's result: missions in three languages."""
    out = tmp_path_factory.mktemp("result") / "oracle"
    rules = [word for rule in WORLD for word in ("--world", rule)]
    assert (
        evaluation.main(["--policy", "oracle", "--suite", "safari", "--episodes", "8", "--out", str(out), *rules]) == 0
    )
    return out


def test_each_turn_is_two_pictures_of_what_was_recorded(script, result, tmp_path):
    record = next(r for r in read_result(result)[1] if r.mission.isascii())
    out = tmp_path / "replay.webp"
    assert script.main([str(result), "--seed", str(record.seed), "--tiles", "10", "--out", str(out)]) == 0
    with Image.open(out) as drawn:
        assert (drawn.n_frames, drawn.size) == (2 * record.turns, script.SIZE)
    assert out.stat().st_size <= script.MAX_BYTES


def test_a_mission_that_the_font_cannot_write_is_refused_by_its_character(script, result, tmp_path, capsys):
    foreign = next(r for r in read_result(result)[1] if not r.mission.isascii())
    out = tmp_path / "replay.webp"
    assert script.main([str(result), "--seed", str(foreign.seed), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: DejaVuSans.ttf has no ") and "--font" in said and not out.exists()


def test_a_seed_that_was_not_played_is_refused(script, result, tmp_path, capsys):
    assert script.main([str(result), "--seed", "7", "--out", str(tmp_path / "x.webp")]) == 2
    assert "--seed" in capsys.readouterr().err


def test_calls_are_spelled_on_one_line(script):
    steps = [{"direction": "UP", "steps": 3}, {"direction": "LEFT", "steps": 1}]
    assert script.spell("move", {"actions": steps}) == "move(UP 3, LEFT 1)"
    assert script.spell("declare_found", {"target": "red pig"}) == 'declare_found("red pig")'
    assert script.spell("declare_done", {}) == "declare_done()"
    assert script.answer({"name": "move", "content": {"moved": True, "blocked": True}}) == "move: blocked"
