"""benchmarks/variants.py on a tiny model and a CPU: each variant is measured, one that fails costs itself alone."""

from pathlib import Path

import pytest
from loading import load_program
from rich.console import Console
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

from qwenvl_agent.config import load_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def variants():
    return load_program("benchmarks/variants.py")


def test_every_variant_is_a_config_that_loads(variants):
    configs = {name: load_config(ROOT / "configs" / "safari_2b.json", over) for name, over in variants.VARIANTS.items()}
    assert configs["lora, packs, compiled"].model.compile and configs["lora, packs, compiled"].train.pack_tokens
    rows = {config.train.batch_size * config.train.accumulation for config in configs.values()}
    assert rows == {8}, "equal rows a step, or first losses could not be compared"


REPORT = {
    "speed": {"tokens_per_s": 12345.6, "seconds_per_step": 0.25, "model_flop_utilisation": 0.31},
    "host": {"busy": 0.5, "kernels": 12000, "waits": 0},
    "memory": {"planned_tensors": 3 * 2**30, "allocated": None},
    "losses": [2.54321, 2.0],
    "step_seconds": [7.04, 0.25],
}


def test_the_table_says_what_failed(variants):
    assert variants.cells(REPORT) == [
        "12,346",
        "250",
        "31.0%",
        "50%",
        "12,000",
        "0",
        "3.00",
        "unknown",
        "2.5432",
        "7.0",
    ]
    console = Console(width=200, highlight=False)
    with console.capture() as shown:
        console.print(variants.table({"lora": REPORT, "packs": {"error": "out of memory"}}))
    assert "12,346" in shown.get() and "out of memory" in shown.get()


@pytest.mark.slow
def test_variants_are_measured_one_by_one(variants, tmp_path, capsys):
    checkpoint, dataset = save_tiny_checkpoint(tmp_path / "base"), save_dataset(tmp_path / "data")
    path = save_config(tiny_config(tmp_path, checkpoint, dataset), tmp_path / "config.json")
    names = ["as it is", "lora, packs", "lora, no dropout"]
    options = ["--config", str(path), "--cpu", "--steps", "4", "--out", str(tmp_path / "out"), "--only", *names]
    assert variants.main([*options, "--set", "model.lora_rank=0"]) == 1
    assert "model.lora_rank is 0" in capsys.readouterr().out.replace("\n", " ")
    assert variants.main(options) == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "as_it_is.json",
        "lora_no_dropout.json",
        "lora_packs.json",
    ]
