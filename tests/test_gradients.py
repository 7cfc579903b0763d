"""A vision tower that trains, on rows of which some or all show no picture: every step is the same on one rank and two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import save_config, save_mixed_dataset, save_tiny_checkpoint, tiny_config

from qwenvl_agent.config import Config
from train import train

ROOT = Path(__file__).parent.parent
# Without a GPU, `accelerate launch` starts two ranks that know of each other only this way.
TWO_RANKS = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
NUM_ROWS, STEPS = 16, 4
MODELS = {
    "language and merger": {"lora_places": ["language", "merger"]},
    "language, merger and vision": {"lora_places": ["language", "merger", "vision"]},
    "full": {"method": "full", "train_vision": True},
}
SAYS_UNTRAINED = "no step showed a picture"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("gradients") / "base")


@pytest.fixture
def configure(base, tmp_path):
    """Function from what trains, the rows with a picture, and train settings to a config of an epoch."""

    def build(model: dict, with_picture, name: str = "run", **settings) -> Config:
        data = save_mixed_dataset(tmp_path / "data", NUM_ROWS, with_picture)
        model = {"lora_dropout": 0.0, "lora_rank": 2} | model
        settings = {"max_steps": STEPS, "batch_size": 2, "accumulation": 2, "weight_decay": 0.1} | settings
        values = {"model": model, "train": settings, "data": {"eval_fraction": 0.0}, "eval": {"step_rows": 0}}
        return tiny_config(tmp_path, base, data, name=name, **values)

    return build


def weights(config: Config) -> dict[str, torch.Tensor]:
    files = sorted((config.run_dir / "checkpoints/last/model").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def gradient_norms(config: Config) -> list[float]:
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["train/gradient_norm"] for line in lines if "train/gradient_norm" in line]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_text_alone_trains_and_the_end_names_what_learned_nothing(configure, model, capsys):
    config = configure(model, with_picture=())
    train(config)
    said = capsys.readouterr().out
    assert f"{SAYS_UNTRAINED}: " in said and "model.visual." in said
    moved = [n for n, t in weights(config).items() if "visual" in n and "lora_B" in n and t.any()]
    assert moved == []  # B is zero at the start, and stays so without a gradient


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_mixed_rows_train_all_that_was_asked(configure, model, capsys):
    config = configure(model, with_picture=(3, 4, 11))
    train(config)
    assert SAYS_UNTRAINED not in capsys.readouterr().out
    assert len(gradient_norms(config)) == STEPS
    zero = [name for name, tensor in weights(config).items() if "lora_B" in name and not tensor.any()]
    assert zero == []


def test_a_frozen_tower_is_not_spoken_of(configure, capsys):
    train(configure({"lora_places": ["language"]}, with_picture=(), max_steps=2))
    assert SAYS_UNTRAINED not in capsys.readouterr().out


ADAPTERS = "language, merger and vision"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [(ADAPTERS, "mixed"), (ADAPTERS, "text"), ("full", "mixed")])
def test_two_ranks_take_the_steps_of_one(configure, tmp_path, name, rows):
    """Of 16 rows two show a picture, so at least two of the four steps show none and must not skip the tower."""
    with_picture = (3, 4) if rows == "mixed" else ()
    one = configure(MODELS[name], with_picture, "one")
    train(one)
    two = configure(MODELS[name], with_picture, "two", batch_size=1)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    config = save_config(two, tmp_path / "two.json")
    command = [*TWO_RANKS, "--main_process_port", "0", str(ROOT / "train.py"), "--config", str(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (two.run_dir / "checkpoints/last/rank_1.json").exists()
    assert gradient_norms(two) == pytest.approx(gradient_norms(one), rel=1e-4)
    ours, wanted = weights(two), weights(one)
    assert ours.keys() == wanted.keys()
    for tensor_name, tensor in wanted.items():
        torch.testing.assert_close(ours[tensor_name], tensor, rtol=1e-3, atol=2e-5, msg=tensor_name)
