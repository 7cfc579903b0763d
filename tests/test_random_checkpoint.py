"""Random checkpoints: the published names and shapes, drawn one shard at a time, read by the loader of real ones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from loading import load_program
from safetensors import safe_open
from tiny_run import save_tiny_checkpoint
from transformers import AutoConfig, AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from qwenvl_agent.config import ModelConfig
from qwenvl_agent.families import FAMILIES
from qwenvl_agent.model.build import build_model
from qwenvl_agent.planning.vram import ARCHITECTURES, find_architecture, read_architecture

SHARD_GB = 0.0001
PUBLISHED = {"2b": 2_127_532_032, "4b": 4_437_815_808, "8b": 8_767_123_696}
PUBLISHED |= {"32b": 33_357_390_064, "30b-a3b": 31_070_754_032, "qwen3.5-9b": 9_409_813_744}
"""Parameters of the published checkpoints; of Qwen3.5, whose files are not at hand, those of its published config."""


@pytest.fixture(scope="module")
def script():
    return load_program("scripts/make_random_checkpoint.py")


@pytest.fixture(scope="module")
def processor_dir(tmp_path_factory):
    """Of a small member of the family, with an untied head; its published weights are not there."""
    directory = save_tiny_checkpoint(tmp_path_factory.mktemp("processor") / "small")
    (directory / "model.safetensors").unlink()
    values = json.loads((directory / "config.json").read_text())
    values["tie_word_embeddings"] = values["text_config"]["tie_word_embeddings"] = False
    (directory / "config.json").write_text(json.dumps(values))
    return directory


@pytest.fixture(scope="module")
def small(script, processor_dir):
    """The small architecture as a further row of the table of sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(script.SIZES, "small", find_architecture(str(processor_dir)))
        yield script


@pytest.fixture(scope="module")
def checkpoint(small, processor_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("checkpoints") / "small"
    return out, small.make_checkpoint("small", processor_dir, out, shard_gb=SHARD_GB)


def read(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in directory.glob("*.safetensors") for k, v in safetensors.torch.load_file(f).items()}


def expected_model(directory: Path) -> Qwen3VLForConditionalGeneration:
    with torch.device("meta"):
        return Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_json_file(directory / "config.json"))


def test_sizes_are_the_published_ones(script):
    assert {size: arch.language + arch.vision for size, arch in script.SIZES.items()} == PUBLISHED
    assert script.SIZES["8b"] is ARCHITECTURES["Qwen/Qwen3-VL-8B-Instruct"]


def test_every_parameter_is_there_once_in_bfloat16(checkpoint):
    directory, written = checkpoint
    shapes = {name: parameter.shape for name, parameter in expected_model(directory).named_parameters()}
    weights = read(directory)
    assert {name: tensor.shape for name, tensor in weights.items()} == shapes and "lm_head.weight" in shapes
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert written.parameters == sum(tensor.numel() for tensor in weights.values())
    assert written.bytes == 2 * written.parameters


def test_shards_are_no_larger_than_asked_and_the_index_finds_each(checkpoint):
    directory, written = checkpoint
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == written.shards > 3
    assert index["metadata"]["total_size"] == written.bytes
    for filename in set(index["weight_map"].values()):
        with safe_open(directory / filename, "pt") as shard:
            names = set(shard.keys())
            sizes = [2 * shard.get_tensor(name).numel() for name in names]
        assert names == {name for name, place in index["weight_map"].items() if place == filename}
        assert sum(sizes) <= SHARD_GB * 1e9 or len(sizes) == 1


def test_weights_are_initialised_as_transformers_does(checkpoint):
    weights = read(checkpoint[0])
    assert weights["model.language_model.embed_tokens.weight"].float().std() == pytest.approx(0.02, rel=0.05)
    assert weights["model.visual.patch_embed.proj.weight"].float().std() == pytest.approx(0.02, rel=0.05)
    assert (weights["model.language_model.layers.0.self_attn.q_norm.weight"] == 1).all()
    assert (weights["model.visual.blocks.0.attn.qkv.bias"] == 0).all()
    up, gate = (weights[f"model.language_model.layers.0.mlp.{name}_proj.weight"] for name in ("up", "gate"))
    assert not torch.equal(up, gate)


def test_it_loads_as_a_real_checkpoint_does(checkpoint):
    directory, _ = checkpoint
    config = ModelConfig(path=str(directory), method="lora", autocast=False)
    weights, model = read(directory), build_model(config, "cpu").merge_and_unload()
    loaded = dict(model.named_parameters())
    assert set(loaded) == set(weights) and all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_the_seed_gives_the_bytes_however_they_are_split(checkpoint, small, processor_dir, tmp_path):
    one_file = small.make_checkpoint("small", processor_dir, tmp_path / "one", shard_gb=1)
    other_seed = small.make_checkpoint("small", processor_dir, tmp_path / "other", seed=1, shard_gb=1)
    assert one_file.shards == other_seed.shards == 1 and not list((tmp_path / "one").glob("*.index.json"))
    split, one, other = read(checkpoint[0]), read(tmp_path / "one"), read(tmp_path / "other")
    assert all(torch.equal(split[name], one[name]) for name in split)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_no_more_than_one_shard_is_in_memory(small, processor_dir, tmp_path, monkeypatch):
    """At each write all weights of the model are on the meta device, and only one shard's are not."""
    held, write_shard = [], small.write_shard

    def watch(path, model, names, seed):
        write_shard(path, model, names, seed)
        held.append(sum(p.numel() for p in model.parameters() if p.device.type != "meta"))

    monkeypatch.setattr(small, "write_shard", watch)
    written = small.make_checkpoint("small", processor_dir, tmp_path / "out", shard_gb=SHARD_GB)
    assert held == [0] * written.shards


@pytest.mark.parametrize("model_type", FAMILIES)
def test_fewer_layers_are_a_checkpoint_of_the_same_widths(small, tmp_path, monkeypatch, model_type):
    """Weights are stored as the family publishes them, and come back as they were drawn."""
    family = FAMILIES[model_type]
    processor = save_tiny_checkpoint(tmp_path / "processor", family=family, num_layers=4)
    arch = find_architecture(str(processor))
    monkeypatch.setitem(small.SIZES, "small", arch)
    monkeypatch.setattr(small, "make_config", lambda arch: first_layers_of(processor, arch))
    written = small.make_checkpoint("small", processor, tmp_path / "out", layers=2)
    fewer = replace(arch, layers=2, linear_layers=1 if arch.linear_layers else 0)
    assert find_architecture(str(tmp_path / "out")) == fewer
    assert written.parameters == fewer.language + arch.vision
    if arch.linear_layers:
        with pytest.raises(ValueError, match="3 layers are no whole rounds of 2"):
            small.make_checkpoint("small", processor, tmp_path / "three", layers=3)
    model = build_model(ModelConfig(path=str(tmp_path / "out"), method="lora", autocast=False), "cpu").get_base_model()
    weights = read(tmp_path / "out")
    plain = {name.replace(".base_layer", ""): weight for name, weight in model.named_parameters() if "lora" not in name}
    assert all(torch.equal(family.stored(name, plain[name]), weight) for name, weight in weights.items())


def first_layers_of(processor: Path, arch):
    """The small config itself: the published values of a family are of its true widths."""
    values = AutoConfig.from_pretrained(processor).to_dict()
    values["text_config"]["num_hidden_layers"] = arch.layers
    if kinds := values["text_config"].get("layer_types"):
        values["text_config"]["layer_types"] = kinds[: arch.layers]
    return AutoConfig.for_model(**values)


def test_another_familys_processor_stands_in_with_its_vocabulary(small, processor_dir, tmp_path, monkeypatch):
    family = FAMILIES["qwen3_5"]
    theirs = save_tiny_checkpoint(tmp_path / "theirs", family=family)
    arch = replace(find_architecture(str(theirs)), vocab=1024)  # none that the processor's tokens fill
    monkeypatch.setitem(small.SIZES, "other", arch)
    with pytest.raises(ValueError, match="config.json is not the published config.*--stand-in if another"):
        small.make_checkpoint("other", processor_dir, tmp_path / "refused")
    small.make_checkpoint("other", processor_dir, tmp_path / "out", stand_in=True)
    ours = find_architecture(str(processor_dir))
    assert find_architecture(str(tmp_path / "out")) == replace(arch, vocab=ours.vocab)
    config, tokenizer = AutoConfig.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert config.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert config.text_config.eos_token_id == tokenizer.eos_token_id
    assert build_model(ModelConfig(path=str(tmp_path / "out"), method="lora"), "cpu").config.model_type == "qwen3_5"


@pytest.mark.parametrize("path", ARCHITECTURES)
def test_the_config_of_an_architecture_has_it(script, path):
    config = script.make_config(ARCHITECTURES[path])
    assert read_architecture(config.to_dict()) == ARCHITECTURES[path]


def test_a_tied_head_is_not_stored(small, processor_dir, tmp_path, monkeypatch):
    tied = tmp_path / "tied"
    shutil.copytree(processor_dir, tied)
    values = json.loads((tied / "config.json").read_text())
    values["tie_word_embeddings"] = values["text_config"]["tie_word_embeddings"] = True
    (tied / "config.json").write_text(json.dumps(values))
    monkeypatch.setitem(small.SIZES, "small", find_architecture(str(tied)))
    written = small.make_checkpoint("small", tied, tmp_path / "out")
    assert "lm_head.weight" not in read(tmp_path / "out")
    assert written.parameters == small.SIZES["small"].language + small.SIZES["small"].vision
    model = build_model(ModelConfig(path=str(tmp_path / "out"), method="lora"), "cpu").get_base_model()
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def run(script, capsys, *argv) -> tuple[int, str, str]:
    status = script.main([str(arg) for arg in argv])
    return (status, *capsys.readouterr())


def test_json_says_what_was_written(small, processor_dir, tmp_path, capsys):
    args = ("--size", "small", "--processor", processor_dir, "--out", tmp_path / "out", "--json")
    status, out, _ = run(small, capsys, *args)
    written = json.loads(out)
    arch = small.SIZES["small"]
    assert status == 0 and written["parameters"] == arch.language + arch.vision and written["size"] == "small"
    assert written["peak_rss"] > written["bytes"] and (tmp_path / "out" / "preprocessor_config.json").exists()


def test_mistakes_are_one_line_and_leave_nothing(small, processor_dir, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    args = ("--processor", processor_dir, "--out", out)
    status, _, err = run(small, capsys, "--size", "2b", *args)
    assert status == 2 and "is not the published config of Qwen3-VL 2B" in err
    status, _, err = run(small, capsys, "--size", "small", "--processor", tmp_path / "no", "--out", out)
    assert status == 2 and "holds neither configs/small.json nor config.json" in err
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copyfile(processor_dir / "config.json", bare / "config.json")
    status, _, err = run(small, capsys, "--size", "small", "--processor", bare, "--out", out)
    assert status == 2 and "tokenizer.json is missing" in err
    status, _, err = run(small, capsys, "--size", "small", "--processor", processor_dir, "--out", tmp_path)
    assert status == 2 and "exists: its files would be lost" in err
    monkeypatch.setattr(small.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    status, _, err = run(small, capsys, "--size", "small", *args)
    assert status == 2 and "GB free, the weights take" in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare"]
