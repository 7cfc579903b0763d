"""benchmarks/ranks.py: its arithmetic by hand, and two ranks of a tiny run for real."""

import subprocess
import sys
from pathlib import Path

import pytest
from loading import load_program
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ranks():
    return load_program("benchmarks/ranks.py")


def step(tokens: int, wall: float, **parts: float) -> dict:
    """`parts` are CPU seconds; each takes a tenth of a second more by the clock."""
    return {
        "tokens": tokens,
        "places": tokens,
        "wall": wall,
        "parts": {k: [cpu, cpu + 0.1] for k, cpu in parts.items()},
    }


def test_a_step_is_as_long_as_its_slowest_rank(ranks):
    one = [[step(100, 1.2, forward=0.4, backward=0.6)] * 2]
    two = [
        [step(120, 1.5, forward=0.5, backward=0.7), step(80, 1.5, forward=0.3, backward=0.5)],
        [step(80, 1.5, forward=0.3, backward=0.5), step(120, 1.5, forward=0.5, backward=0.7)],
    ]
    assert ranks.balance(two) == pytest.approx(1.0 / 1.2)
    assert ranks.rate(one, "work") == pytest.approx(100) and ranks.rate(two, "work") == pytest.approx(200 / 1.2)
    assert ranks.rate(two, "wall") == pytest.approx(200 / 1.5)
    text = ranks.describe(one, two)
    assert "| forward | 400 | 100 | 400 | 100 | 400 | 100 |" in text
    assert (
        "balance: ranks do 83.3% of what" in text
        and "work alone, as if nobody waited but for the slowest: 1.67x" in text
    )
    assert "by the clock: 1.60x (83 and 133 tokens/s)" in text


@pytest.mark.slow
def test_two_ranks_are_measured_beside_one(ranks, tmp_path):
    checkpoint, dataset = save_tiny_checkpoint(tmp_path / "base"), save_dataset(tmp_path / "data")
    config = tiny_config(tmp_path, checkpoint, dataset, model={"attention": "sdpa"}, train={"pack_tokens": 2000})
    path = save_config(config, tmp_path / "config.json")
    command = [sys.executable, str(ROOT / "benchmarks" / "ranks.py"), "--config", str(path), "--steps", "2"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows[1:]] == list(ranks.PARTS) and {len(row) for row in rows[1:]} == {
        7
    }
    assert "balance: ranks do " in done.stdout and "speed-up by the clock: " in done.stdout
