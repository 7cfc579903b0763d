"""docs/CONFIG.md, the JSON schemas and --help are what the dataclasses say."""

import json
from pathlib import Path

import jsonschema
import pytest
from loading import load_program

from qwenvl_agent.config import Config, build_config
from qwenvl_agent.settings import list_settings, read_values
from qwenvl_agent.settings_reference import help_of

ROOT = Path(__file__).parent.parent
script = load_program("scripts/document_config.py")

FOLDERS = ("configs", "configs/sweeps", "scripts/ablations")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.json")) if path.name != "schema.json"]
FILES.append(ROOT / "benchmarks" / "bench.json")
LEAST = {"name": "x", "model": {"path": "tiny"}}


@pytest.mark.parametrize("path", script.documents())
def test_a_document_is_what_the_dataclasses_say(path):
    """`python scripts/document_config.py` writes them again."""
    assert (ROOT / path).read_text(encoding="utf-8") == script.documents()[path]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_shipped_file_names_a_schema_that_it_fits(path):
    values = read_values(path)
    schema = json.loads((path.parent / values["$schema"]).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(values, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "values",
    [
        {"trian": {}},
        {"train": {"epochs": "3"}},
        {"train": {"batch_size": 0}},
        {"train": {"betas": [0.9]}},
        {"train": {"betas": [0.9, 1.0]}},
        {"model": {}},
        {"model": {"path": "x", "method": "dora"}},
        {"model": {"path": "x", "autocast": "yes"}},
        {"model": {"path": "x", "lora_places": ["tower"]}},
        {"data": {"sources": [{"pth": "a"}]}},
    ],
)
def test_schema_and_loader_refuse_the_same(values):
    schema = json.loads((ROOT / "configs" / "schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(LEAST, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(LEAST | values, schema)
    with pytest.raises(ValueError):
        build_config(LEAST | values)


def test_every_setting_has_a_meaning():
    assert [setting.path for setting in list_settings(Config) if not setting.meaning.endswith(".")] == []


def test_help_has_every_setting_with_its_default():
    text = help_of(Config)
    assert max(map(len, text.splitlines())) <= 118
    words = " ".join(text.split())
    for setting in list_settings(Config):
        assert setting.path in words and setting.meaning in words
    assert "train.batch_size=2 (1 to 65536) Rows of one micro-batch on one rank." in words
    assert "model.path (required) Hub id" in words and 'prompt.format="native" (plain, native, hybrid' in words
