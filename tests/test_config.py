"""The loader is strict both ways, and every error names the path of what is wrong."""

import json

import pytest

from qwenvl_agent.config import ModelConfig, build_config, load_config, to_json

LEAST = {"name": "x", "model": {"path": "tiny"}}


@pytest.fixture
def write(tmp_path):
    def write(values) -> str:
        path = tmp_path / "config.json"
        path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
        return str(path)

    return write


def test_a_file_lists_only_what_differs(write):
    config = load_config(write({**LEAST, "train": {"learning_rate": 1, "betas": [0.5, 0.9]}}))
    assert config.model == ModelConfig(path="tiny")
    assert (config.train.learning_rate, config.train.betas) == (1.0, (0.5, 0.9))
    assert isinstance(config.train.learning_rate, float)
    assert str(config.run_dir) == "runs/x"


def test_sources_are_a_list_of_groups():
    config = build_config({**LEAST, "data": {"sources": [{"path": "a"}, {"path": "b", "kind": "chat", "weight": 2}]}})
    assert [(s.path, s.kind, s.weight) for s in config.data.sources] == [("a", "safari", 1.0), ("b", "chat", 2.0)]


def test_written_and_read_back_is_the_same():
    config = build_config({**LEAST, "data": {"sources": [{"path": "a"}]}, "eval": {"world": {"size": 20}}})
    assert build_config(json.loads(json.dumps(to_json(config)))) == config


def test_overrides_are_json_or_text(write):
    overrides = ["train.learning_rate=1e-4", "train.epochs=2", "model.path=org/name", 'eval.world={"size": 9}']
    overrides += ["model.autocast=false", 'model.lora_targets=["q_proj"]', "data.cache_dir=a=b", " name =y"]
    config = load_config(write(LEAST), overrides)
    assert (config.train.learning_rate, config.train.epochs) == (1e-4, 2.0)
    assert (config.model.path, config.model.autocast, config.model.lora_targets) == ("org/name", False, ("q_proj",))
    assert (config.eval.world, config.data.cache_dir, config.name) == ({"size": 9}, "a=b", "y")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**LEAST, "trian": {}}, "unknown key 'trian': it would have no effect; nearest known key: 'train'"),
        (
            {**LEAST, "train": {"learning_rat": 1}},
            "unknown key 'train.learning_rat'.*nearest known key: 'learning_rate'",
        ),
        ({**LEAST, "data": {"sources": [{"pth": "a"}]}}, r"unknown key 'data.sources\[0\].pth'.*'path'"),
        ({"name": "x"}, "'model' is missing and has no default"),
        ({"name": "x", "model": {}}, "'model.path' is missing and has no default"),
        ({**LEAST, "train": 3}, "train is 3, not an object with settings"),
        ({**LEAST, "train": {"epochs": "3"}}, "train.epochs is '3', which is not of type float"),
        ({**LEAST, "train": {"batch_size": 2.0}}, "train.batch_size is 2.0, which is not of type int"),
        ({**LEAST, "train": {"batch_size": True}}, "train.batch_size is True, which is not of type int"),
        ({**LEAST, "train": {"learning_rate": False}}, "train.learning_rate is False, which is not of type float"),
        ({**LEAST, "train": {"betas": [0.9]}}, r"train.betas is \[0.9\], which is not of type tuple"),
        ({**LEAST, "data": {"sources": "a.jsonl"}}, "data.sources is 'a.jsonl', which is not of type tuple"),
        ({**LEAST, "model": {"path": None}}, "model.path is None, which is not of type str"),
        ({**LEAST, "model": {"path": "x", "method": "dora"}}, "model.method is 'dora'.*use one of full, lora, qlora"),
        ({**LEAST, "prompt": {"format": "json"}}, "prompt.format is 'json'.*plain, native, hybrid, no_thought"),
        ({**LEAST, "prompt": {"history_steps": -1}}, "prompt.history_steps is -1, below 0"),
        ({**LEAST, "train": {"batch_size": 0}}, "train.batch_size is 0, below 1"),
        ({**LEAST, "train": {"zero_stage": 4}}, "train.zero_stage is 4"),
        ({**LEAST, "vision": {"reduce": "crop"}}, "vision.reduce is 'crop'"),
        ({**LEAST, "data": {"sources": [{"path": "a", "kind": "csv"}]}}, "kind is 'csv'.*use one of safari, chat"),
        ({**LEAST, "train": {"zero_stage": 3}}, "4-bit weights cannot be sharded"),
        ({**LEAST, "train": {"patience": 3, "eval_every": 0}}, "train.patience is 3 and train.eval_every is 0"),
        ({**LEAST, "train": {"pack_tokens": 2048}}, "with model.attention 'auto'.*set model.attention=sdpa"),
        (
            {**LEAST, "model": {"path": "x", "train_vision": True}},
            "model.train_vision is true with model.method 'qlora'",
        ),
        ({**LEAST, "model": {"path": "x", "lora_places": ["language", "tower"]}}, "model.lora_places is 'tower'"),
        ({**LEAST, "model": {"path": "x", "lora_places": ["merger"]}}, "adapters are at least in the language model"),
        (
            {**LEAST, "model": {"path": "x", "method": "full", "lora_places": ["language", "merger"]}},
            "with model.method 'full', which has no adapters",
        ),
    ],
)
def test_errors_name_the_path(values, message):
    with pytest.raises(ValueError, match=message):
        build_config(values)


def test_files_that_cannot_be_read(write, tmp_path):
    with pytest.raises(ValueError, match=r"config.json:2: not JSON \(.*\): no setting can be read; correct it"):
        load_config(write('{"name": "x",\n model}'))
    with pytest.raises(ValueError, match="gone.json: No such file or directory: there is no config to run"):
        load_config(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "override 'train.epochs' has no '='"),
        ("name.a=1", "'name' is a value, not a group"),
        ("train.epoch=1", "unknown key 'train.epoch'.*'epochs'"),
    ],
)
def test_faulty_overrides(write, override, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(LEAST), [override])
