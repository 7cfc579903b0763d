"""docs/DATA.md shows examples as the model sees them: whole, and what this version makes of them."""

import re
from pathlib import Path

import pytest
from conftest import tiny_processor
from PIL import Image

from qwenvl_agent.cli.checked_data import row_lines
from qwenvl_agent.cli.shown_rows import coloured
from qwenvl_agent.config import Config, DataConfig, ModelConfig, PromptConfig, SourceConfig
from qwenvl_agent.curation.checkup import FirstRow, render
from qwenvl_agent.data.collator import build_collator
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.schema import Row

TEXT = (Path(__file__).parents[1] / "docs" / "DATA.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```text (\w+) (\w+)\n(.*?)\n```\n", TEXT, re.DOTALL)
PICTURES = ("screen.png", "left.png", "right.png", "images/ep_1f2e3d4c_turn_000.png")


def first_row(folder: Path, kind: str) -> tuple[Config, Row]:
    """Of the kind's examples, the first."""
    (folder / "images").mkdir()
    for name in PICTURES:
        Image.new("RGB", (480, 480)).save(folder / name)
    examples = TEXT.partition(f"```json {kind}\n")[2].partition("\n```")[0]
    (folder / "data.jsonl").write_text(examples + "\n", encoding="utf-8")
    source = SourceConfig(path=str(folder / "data.jsonl"), kind=kind)
    data = DataConfig(sources=(source,), cache_dir=str(folder / "cache"), eval_fraction=0.0)
    config = Config(name="docs", model=ModelConfig(path="tiny"), data=data)
    rows = build_rows(data, config.prompt).train
    return config, next(row for row in map(rows.__getitem__, range(len(rows))) if row.source.endswith(":1"))


def test_every_kind_and_every_format_is_shown():
    assert {(kind, name) for kind, name, _ in SHOWN} >= {
        (kind, "native") for kind in ("safari", "recorded", "computer")
    }
    assert {name for kind, name, _ in SHOWN if kind == "chat"} == set(FORMATS)


@pytest.mark.parametrize(("kind", "name", "shown"), SHOWN, ids=[f"{kind} {name}" for kind, name, _ in SHOWN])
def test_the_text_is_what_is_learned(tmp_path, kind, name, shown):
    """As `check-data` prints it, `>` before what is learned; without the marks it is the text that `show` colours."""
    config, row = first_row(tmp_path, kind)
    prompt = PromptConfig(format=name)
    printed = list(row_lines(FirstRow(row.source, render(row, FORMATS[name], prompt))))[2:]
    lines = [line for line in printed if not line.startswith("  picture: ")]
    assert shown.split("\n") == lines, "\n".join(lines)
    collator = build_collator(
        tiny_processor(1), Config(name="docs", model=config.model, data=config.data, prompt=prompt)
    )
    text = re.sub(r" x \d+", "", coloured(collator.sample(row)).plain.replace("↵\n", "\n"))
    assert "\n".join(line[2:] for line in shown.split("\n")) == text.removesuffix("\n")
