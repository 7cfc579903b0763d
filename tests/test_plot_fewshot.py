"""The plot of a few-shot curve reads results of eval.py and nothing else."""

import json

import pytest
from PIL import Image

from scripts import plot_fewshot as script


@pytest.fixture
def result(tmp_path):
    """Writes the result of a run that was trained on so many rows."""

    def write(name: str, rows: int, share: float):
        directory = tmp_path / name / "eval" / "clicks"
        directory.mkdir(parents=True)
        interval = {"value": share, "low": share - 0.1, "high": share + 0.1, "n": 50}
        (directory / "metrics.json").write_text(json.dumps({"box_hit_rate": interval}))
        (tmp_path / name / "data.json").write_text(json.dumps({"num_train_rows": rows}))
        return directory

    return write


def test_points_are_listed_by_rows_and_drawn(result, tmp_path, capsys):
    many, few = result("a", 200, 0.5), result("b", 10, 0.2)
    assert script.main([str(many), str(few), "--base", str(few), "--out", str(tmp_path / "curve.png")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "    10 rows: 0.200 (0.100 to 0.300)",
        "   200 rows: 0.500 (0.400 to 0.600)",
    ]
    assert Image.open(tmp_path / "curve.png").width > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere/eval/clicks"], "nowhere/eval/clicks/metrics.json: No such file"), (["--metric", "joy"], "has no joy")],
)
def test_what_is_missing_is_named(result, tmp_path, capsys, arguments, message):
    given = arguments if arguments[0] != "--metric" else [str(result("a", 10, 0.5)), *arguments]
    assert script.main([*given, "--out", str(tmp_path / "curve.png")]) == 2
    assert message in capsys.readouterr().err
