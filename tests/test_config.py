"""The loader is strict both ways, and every error names the path of what is wrong."""

import dataclasses
import json
import math
import re
import typing

import pytest

from qwenvl_agent.aliases import ALIASES
from qwenvl_agent.config import Config, ModelConfig, SourceConfig, build_config, load_config, setting_paths, to_json

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
        (
            {**LEAST, "data": {"sources": [{"path": "a", "kind": "csv"}]}},
            "kind is 'csv'.*use one of safari, recorded, chat",
        ),
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


# what every number may be


def paths_of(cls: type, path: str = ""):
    """(dotted path, field's type with its range) of every leaf of the settings."""
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from paths_of(hint, f"{path}{name}.")
        elif hint == tuple[SourceConfig, ...]:
            yield from paths_of(SourceConfig, f"{path}{name}[].")
        else:
            yield f"{path}{name}", hint


def values_with(path: str, value: object) -> dict:
    """The least settings, with one more at `path`."""
    values = json.loads(json.dumps({**LEAST, "data": {"sources": [{"path": "a"}]}}))
    *parents, last = path.split(".")
    group = values
    for parent in parents:
        group = group["sources"][0] if parent == "sources[]" else group.setdefault(parent, {})
    group[last] = value
    return values


NUMBERS = {path: hint.__metadata__[0] for path, hint in paths_of(Config) if hasattr(hint, "__metadata__")}


def test_every_number_has_a_range():
    plain = [p for p, hint in paths_of(Config) if hint in (int, float) or (tuple[float, float] == hint)]
    assert plain == [] and len(NUMBERS) >= 35


@pytest.mark.parametrize("path", NUMBERS)
def test_every_number_is_refused_outside_its_range(path):
    limits, kind = NUMBERS[path], dict(paths_of(Config))[path].__origin__
    wrong = [int(limits.least) - 1, int(limits.most) + 1, 10**400, -(10**400)]
    for value in wrong if kind is int else [*map(float, wrong[:2]), *wrong[2:], math.nan, math.inf, -math.inf]:
        written = [0.5, value] if kind == tuple[float, float] else value
        with pytest.raises(ValueError, match=rf"^{re.escape(path.replace('[]', '[0]'))} is .*: .*; (use|raise|lower)"):
            build_config(values_with(path, written))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate=-1", "train.learning_rate is -1.0, below 0: the loss would climb; raise it"),
        ("train.learning_rate=NaN", "NaN is no number of JSON"),
        ("train.learning_rate=1e999", "train.learning_rate is inf, above 1"),
        ('eval.world={"ordered": Infinity}', "Infinity is no number of JSON"),
        ('train={"seed": 1, "seed": 2}', "the key 'seed' is given twice"),
        ("train.log_every=0", "train.log_every is 0, below 1: nothing would be logged; raise it"),
        ("train.save_every=0", "train.save_every is 0, below 1"),
        ("train.epochs=0", "train.epochs is 0.0, below 1e-06"),
        ("train.max_grad_norm=0", "train.max_grad_norm is 0.0, below 1e-12: gradients are cut to that norm"),
        ("train.betas=[0.9, 1]", "train.betas is 1.0, above 0.9999"),
        ("train.weight_call=0", None),
        ("data.eval_fraction=1", "data.eval_fraction is 1.0, above 0.9999"),
        ("data.eval_fraction=0", None),
        ("data.num_workers=-1", "data.num_workers is -1, below 0"),
        ("data.cache_dir=", "data.cache_dir is '': nothing has that name"),
        ('data.sources=[{"path": " "}]', r"data.sources\[0\].path is ' ': nothing has that name"),
        ('data.sources=[{"path": "a", "weight": 0}]', r"data.sources\[0\].weight is 0.0, below 1e-06"),
        (
            "vision.max_tokens_per_image=32",
            "vision.min_tokens_per_image is 64, more than vision.max_tokens_per_image 32",
        ),
        ("eval.episodes=-1", "eval.episodes is -1, below 0: so many are played; raise it"),
        ("eval.time_limit_s=0", "eval.time_limit_s is 0.0, below 1e-12"),
        ("name=a/b", "name is 'a/b': results would lie elsewhere"),
        ("name=..", "name is '..': results would lie elsewhere"),
        ('name="a\\u0000"', "nothing has that name"),
        (
            'model.lora_targets=["q_proj", "proj"]',
            "model.lora_targets names 'proj', no projection of the language model",
        ),
        ('model.lora_targets=["all-linear"]', "model.lora_targets names 'all-linear'.*use some of q_proj, k_proj"),
        ('model.lora_targets=["qkv"]', 'names \'qkv\'.*by model.lora_places=\\["language", "merger", "vision"\\]'),
        ('model.lora_targets=["q_proj", "q_proj"]', "each is named once"),
        ("model.lora_targets=[]", "at least one projection"),
    ],
)
def test_values_that_make_no_run_are_refused(write, override, message):
    if message is None:
        load_config(write(LEAST), [override])
        return
    with pytest.raises(ValueError, match=message):
        load_config(write(LEAST), [override])


def test_a_loss_without_weights_is_refused():
    with pytest.raises(ValueError, match="nothing to learn; raise one"):
        build_config({**LEAST, "train": {"weight_thought": 0, "weight_call": 0}})


def test_files_that_are_no_settings(write, tmp_path):
    with pytest.raises(ValueError, match="config.json: the key 'a' is given twice"):
        load_config(write('{"a": 1, "a": 2}'))
    with pytest.raises(ValueError, match="holds list, not an object with settings"):
        load_config(write("[]"), ["name=x"])
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="config.json: .*no setting can be read"):
        load_config(tmp_path / "config.json")


# what was meant


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("train.lr", "here it is train.learning_rate"),
        ("lr", "here it is train.learning_rate"),
        ("train.bf16", "here it is model.autocast"),
        ("fp16", "precision is model.autocast"),
        ("model.load_in_4bit", "here it is model.method=qlora"),
        ("model.load_in_8bit", "weights are in 4 bit with model.method=qlora"),
        ("model.lora_r", "here it is model.lora_rank"),
        ("lora_alpha", "its place is model.lora_alpha"),
        ("train.lora_alpha", "its place is model.lora_alpha"),
        ("num_train_epochs", "here it is train.epochs"),
        ("train.per_device_train_batch_size", "here it is train.batch_size"),
        ("gradient_accumulation_steps", "here it is train.accumulation"),
        ("max-seq-length", "here it is vision.max_row_tokens"),
        ("train.warmup_ratio", "here it is train.warmup_fraction"),
        ("deepspeed", "here it is train.zero_stage"),
        ("output_dir", "here it is runs_dir and name"),
        ("max_grad_norm", "its place is train.max_grad_norm"),
        ("batch_size", "its place is train.batch_size or eval.batch_size"),
        ("seed", "its place is data.seed or train.seed"),
        ("eval.path", r"its place is model.path or data.sources\[\].path"),
        ("train.model", "its place is model"),
        ("data.kind", r"its place is data.sources\[\].kind"),
        ("train.steps", "here it is train.max_steps"),
        ("train.epoch", "nearest known key: 'epochs'"),
        ("max_token_per_image", "nearest known key: 'vision.max_tokens_per_image'"),
        ("eval.qqq", "known keys here: suite, world, episodes"),
        ("zzz", "known keys here: name, runs_dir, model, data, prompt"),
    ],
)
def test_an_unknown_key_is_answered_by_what_was_meant(write, path, remedy):
    with pytest.raises(ValueError, match=f"^unknown key '{re.escape(path)}': it would have no effect; {remedy}"):
        load_config(write(LEAST), [f"{path}=1"])


def test_every_alias_names_a_setting_and_is_none():
    settings = set(setting_paths())
    for alias, answer in ALIASES.items():
        named = re.findall(r"\b(?:model|data|vision|train|eval|prompt)\.[a-z_]+", answer)
        assert set(named) <= settings, alias
        assert named or answer.startswith("none") or "name" in answer or "option --" in answer, alias
