"""docs/METRICS.md has every figure that the code makes, by its name in TensorBoard, and none that it does not make."""

import json
import re
from pathlib import Path

import pytest
from tiny_run import save_dataset, save_tiny_checkpoint, tiny_config

from qwenvl_agent.evaluation import suite_sets
from qwenvl_agent.evaluation.suites.registry import find_suite
from qwenvl_agent.training.metrics import board_tag

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "METRICS.md").read_text(encoding="utf-8")
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "qwenvl_agent").rglob("*.py")) + (
    ROOT / "train.py"
).read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in TEXT.split("\n## ")}
PLACEHOLDER = re.compile(r"[A-Z]{2,}")


def column(section: str, number: int) -> list[str]:
    """The names in a column of the section's tables."""
    rows = [line.split(" | ") for line in SECTIONS[section].splitlines() if line.startswith("| ")]
    return [name for row in rows if len(row) > number for name in re.findall(r"`([^`]+)`", row[number])]


def patterns() -> dict[str, re.Pattern]:
    """TensorBoard name of the page -> what matches it."""
    names = [*column("The training loop", 0)]
    for section in ("Held-out rows", "Episodes in a world", "Screens"):
        names += column(section, 1)
    return {name: re.compile(PLACEHOLDER.sub(r".+", re.escape(name))) for name in names if "/" in name}


@pytest.mark.parametrize(
    ("suite", "section"),
    [
        ("steps", "Held-out rows"),
        ("safari", "Episodes in a world"),
        ("browser", "Episodes in a world"),
        ("clicks", "Screens"),
        ("screenspot", "Screens"),
        ("elements", "Screens"),
    ],
)
def test_every_label_of_a_suite_is_defined_in_its_section(suite, section):
    assert set(find_suite(suite).labels) <= set(column(section, 0))


def test_a_set_of_suites_adds_what_the_page_says():
    assert set(suite_sets.LABELS) <= set(column("Episodes in a world", 0))


def test_a_figure_of_episodes_or_screens_is_its_group_and_name():
    """Where both columns name it, the second is the first behind its group."""
    groups = {"Held-out rows": "eval", "Episodes in a world": "rollout", "Screens": "clicks"}
    for section, group in groups.items():
        rows = [line.split(" | ") for line in SECTIONS[section].splitlines() if line.startswith("| `")]
        for first, second, *_ in rows:
            names, tags = (re.findall(r"`([^`]+)`", cell) for cell in (first, second))
            assert not tags or tags == [board_tag(f"{group}/{name}") for name in names], first


def test_figures_of_one_tool_or_sentence_stand_apart_in_tensorboard():
    names = (
        "eval/move.recall",
        "eval/move.actions[0].steps",
        "eval/thought.Plan.rare",
        "eval/thought_coverage",
        "train/loss",
    )
    tags = ["eval_tools/move.recall", "eval_tools/move.actions[0].steps", "eval_thoughts/thought.Plan.rare", *names[3:]]
    assert [board_tag(name) for name in names] == tags


def test_no_name_of_the_page_is_unknown_to_the_code():
    """The last part of each without its placeholders stands in the source."""
    for name in patterns():
        literal = max(re.split(r"[A-Z]{2,}|/", name), key=len).strip(".=")
        assert literal in SOURCE or literal.startswith("reduced_") or literal.startswith("within_"), name


@pytest.mark.slow
def test_what_a_run_logs_is_on_the_page(tmp_path):
    """A run of two steps on chat rows and one of the safari's records match a name each, and nothing else is logged."""
    from train import train

    config = tiny_config(
        tmp_path,
        save_tiny_checkpoint(tmp_path / "model"),
        save_dataset(tmp_path / "data"),
        train={"max_steps": 2, "eval_every": 2},
        eval={
            "suite": "safari",
            "episodes": 1,
            "world": {"max_turns": 2, "tile_px": 16, "width": 12, "height": 12, "num_trees": 4},
        },
    )
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()]
    logged = {name for line in lines for name in line} - {"step"}
    assert {name.partition("/")[0] for name in logged} == {"train", "eval", "rollout"}
    unknown = [name for name in logged if not any(known.fullmatch(board_tag(name)) for known in patterns().values())]
    assert not unknown
