"""Kept features of a frozen tower: the same losses, no picture decoded twice, nothing stale."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_run import save_dataset, save_tiny_checkpoint, tiny_config

import train
from qwenvl_agent.config import build_config, to_json
from qwenvl_agent.data import collator as collator_module
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.pixels import picture_key
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.model.build import build_model, build_processor
from qwenvl_agent.model.features import build_features, tower_hash
from qwenvl_agent.schema import Picture
from qwenvl_agent.training.loss import token_losses


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    return save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data", num_rows=10)


def config_of(base, directory: Path, **groups):
    """Some epochs over ten rows with a cache of a gigabyte."""
    config = tiny_config(directory, *base, train={"max_steps": 8}, vision={"feature_cache_gb": 1.0} | groups)
    values = to_json(config)
    values["data"]["cache_dir"] = str(directory / "cache")
    return build_config(values)


def losses(run_dir: Path) -> list[float]:
    return [line["train/loss"] for line in map(json.loads, (run_dir / "metrics.jsonl").open()) if "train/loss" in line]


def test_training_takes_the_same_steps(base, tmp_path):
    def run(name: str, gigabytes: float) -> tuple[list[float], list[Path]]:
        config = config_of(base, tmp_path / name, feature_cache_gb=gigabytes)
        train.train(config)
        return losses(config.run_dir), list((tmp_path / name / "cache").glob("features-*/*"))

    plain, nothing = run("without", 0.0)
    cached, kept = run("with", 1.0)
    limited, kept_within_limit = run("full", 2.5e-9 * kept[0].stat().st_size)
    assert len(plain) == 8  # 32 rows of 9: more than three epochs
    assert cached == pytest.approx(plain, rel=1e-5) and limited == pytest.approx(plain, rel=1e-5)
    assert (len(nothing), len(kept), len(kept_within_limit)) == (0, 9, 2)


@pytest.fixture
def parts(base, tmp_path):
    """(config, model, collator, rows)"""
    config = config_of(base, tmp_path)
    processor = build_processor(config.model, config.vision)
    collator = Collator(processor, FORMATS["native"], config.prompt, config.vision, config.train)
    rows = build_rows(config.data, config.prompt).train
    return config, build_model(config.model, "cpu"), collator, [rows[i] for i in range(4)]


@pytest.mark.parametrize("pack_tokens", [0, 300])
def test_what_is_kept_is_neither_decoded_nor_encoded_again(parts, monkeypatch, pack_tokens):
    config, model, collator, rows = parts
    plain = token_losses(model, collator(rows, pack_tokens)).losses
    features = build_features(config, model, build_processor(config.model, config.vision))
    first = features.attach(collator([*rows, rows[0]], pack_tokens, features.directory))
    assert len(set(map(id, first["features"].pooler_output))) == len(rows)  # the copy was encoded with its original
    monkeypatch.setattr(collator_module, "load_pixels", None)
    monkeypatch.setattr(model.get_base_model().model.visual, "forward", None)
    batch = collator(rows, pack_tokens, features.directory)
    assert "patches" not in batch
    kept = token_losses(model, features.attach(batch)).losses
    torch.testing.assert_close(kept, plain, rtol=1e-5, atol=1e-6)


def test_a_batch_without_pictures_is_left_alone(parts):
    config, model, _, _ = parts
    features = build_features(config, model, build_processor(config.model, config.vision))
    batch = {"input_ids": torch.zeros(1, 2)}
    assert features.attach(batch) is batch


def test_nothing_stale_is_read(parts, tmp_path):
    config, model, _, _ = parts
    processor = build_processor(config.model, config.vision)
    before = tower_hash(model, processor)
    assert tower_hash(model, processor) == before
    with torch.no_grad():
        model.get_base_model().model.visual.merger.linear_fc1.bias[0] += 1
    assert tower_hash(model, processor) != before

    red, blue = (Picture.from_image(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue"))
    keys = [picture_key(red, 64, 64), picture_key(red, 32, 64), picture_key(blue, 64, 64)]
    assert len(set(keys)) == 3 and picture_key(red, 64, 64) == keys[0]
    path = tmp_path / "picture.png"
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(path)
        keys.append(picture_key(Picture(64, 64, str(path)), 64, 64))
    assert keys[3] != keys[4]


def test_a_missing_picture_is_named_with_its_row(parts):
    config, model, collator, rows = parts
    features = build_features(config, model, build_processor(config.model, config.vision))
    picture = rows[0].request.observation.pictures[0]
    moved = Path(picture.path).rename(f"{picture.path}.moved")
    try:
        with pytest.raises(ValueError, match=r"dataset.jsonl:\d+: picture .*its row cannot be used"):
            collator(rows, 0, features.directory)
    finally:
        moved.rename(picture.path)


def test_a_tower_that_trains_has_no_cache(base, tmp_path):
    with pytest.raises(ValueError, match="vision.feature_cache_gb is 1.0 with a vision tower that trains"):
        tiny_config(tmp_path, *base, model={"method": "full", "train_vision": True}, vision={"feature_cache_gb": 1.0})
    with pytest.raises(ValueError, match="vision.feature_cache_gb is 1.0 with a vision tower that trains"):
        places = {"lora_places": ["language", "merger"]}
        tiny_config(tmp_path, *base, model=places, vision={"feature_cache_gb": 1.0})
