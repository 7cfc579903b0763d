"""One way to a model: what a path names, its settings, and what is loaded of it."""

import json
import shutil

import pytest
import torch
from tiny_run import save_tiny_checkpoint
from torch import nn

from qwenvl_agent import load_policy
from qwenvl_agent.checksums import write_checksums
from qwenvl_agent.config import ModelConfig, build_config, to_json
from qwenvl_agent.data.collator import build_collator
from qwenvl_agent.export import probe_inputs, probe_logits
from qwenvl_agent.inference.load import (
    AGENT_CONFIG,
    LoadedModel,
    describe,
    find,
    find_run,
    load_model,
    open_policy,
    settings_of,
)
from qwenvl_agent.model.build import build_model, build_processor, save_weights
from qwenvl_agent.schema import Observation, Request
from qwenvl_agent.training.checkpoint import describe_changes


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("load") / "base")


@pytest.fixture
def config(base):
    return ModelConfig(path=str(base), method="lora", lora_rank=4, dtype="float32", autocast=False)


def open_run(path) -> LoadedModel:
    return load_model(find_run(path), device="cpu")


def test_a_damaged_checkpoint_is_not_loaded(config, tmp_path, capsys):
    directory = tmp_path / "checkpoints" / "step_000001"
    save_weights(build_model(config), directory / "model")
    (directory / "config.json").write_text(json.dumps(to_json(build_config({"name": "r", "model": to_json(config)}))))
    (directory / "optimizer.safetensors").write_bytes(bytes(9))
    (tmp_path / "checkpoints" / "best").symlink_to(directory.name)
    open_run(tmp_path)
    assert "step_000001 has no checksums (saved by an earlier version): taken as it is" in capsys.readouterr().err
    write_checksums(directory)
    (directory / "optimizer.safetensors").unlink()  # is of no use here
    open_run(tmp_path)
    assert "checksums" not in capsys.readouterr().err
    weights = directory / "model" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="adapter_model.safetensors is damaged .* name another checkpoint \\(there is"):
        open_run(tmp_path)
    (directory / "model" / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="adapter_config.json is missing or cut off"):
        open_run(tmp_path)
    shutil.rmtree(directory)
    with pytest.raises(ValueError, match="best points to step_000001, which is gone"):
        open_run(tmp_path)


def test_a_run_is_its_best_then_its_last_checkpoint(config, tmp_path):
    run = build_config({"name": "r", "model": to_json(config)})
    for step, link in ((1, "last"), (2, "best")):
        directory = tmp_path / "checkpoints" / f"step_{step:06d}"
        torch.manual_seed(step)
        model = build_model(config)
        nn.init.normal_(next(p for n, p in model.named_parameters() if "lora_B" in n), std=1.0)
        save_weights(model, directory / "model")
        (directory / "config.json").write_text(json.dumps(to_json(run)))
        (tmp_path / "checkpoints" / link).symlink_to(directory.name)
    loaded, model, processor = open_run(tmp_path)
    assert loaded == run and processor.name == config.path
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    best = build_model(config, weights_dir=tmp_path / "checkpoints" / "best" / "model")
    inputs = probe_inputs(run, processor)
    assert torch.equal(probe_logits(model, inputs), probe_logits(best, inputs))
    (tmp_path / "checkpoints" / "best").unlink()
    assert not torch.equal(probe_logits(open_run(tmp_path).model, inputs), probe_logits(best, inputs))


def test_weights_load_by_the_config_that_trains_their_tower(base):
    overrides = ["model.method=full", "model.train_vision=true", "model.dtype=float32", "model.autocast=false"]
    loaded = load_model(find(str(base), overrides=overrides), device="cpu")
    assert loaded.config.model.train_vision and not any(p.requires_grad for p in loaded.model.parameters())


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        open_run(tmp_path)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A run of one checkpoint, whose settings are no defaults."""
    directory = tmp_path_factory.mktemp("run") / "animals"
    model = {"path": str(base), "method": "full", "dtype": "float32", "autocast": False}
    vision = {"max_tokens_per_image": 16, "min_tokens_per_image": 4}
    values = {"name": "animals", "model": model, "vision": vision, "prompt": {"format": "plain"}}
    settings = build_config(values | {"eval": {"max_new_tokens": 5, "batch_size": 3}})
    checkpoint = directory / "checkpoints" / "step_000007"
    save_weights(build_model(settings.model, "cpu"), checkpoint / "model")
    (checkpoint / "config.json").write_text(json.dumps(to_json(settings)))
    (directory / "checkpoints" / "last").symlink_to(checkpoint.name)
    (directory / "data.json").write_text(json.dumps({"dataset_hash": "abc123"}))
    return directory


def test_every_name_of_a_checkpoint_finds_it(run):
    places = (run, run / "checkpoints" / "last", run / "checkpoints" / "step_000007" / "model")
    found = [find(path) for path in places] + [find(run, checkpoint="step_000007"), find_run(run)]
    assert {(source.path, source.config.prompt.format) for source in found} == {
        (str((run / "checkpoints" / "step_000007").resolve()), "plain")
    }
    assert {source.run.resolve() for source in found} == {run.resolve()}


def test_a_run_lets_only_its_answering_be_changed(run):
    source = find(run, overrides=["eval.temperature=0.7", "model.autocast=true"])
    assert (source.config.eval.temperature, source.config.eval.max_new_tokens, source.autocast) == (0.7, 5, True)
    assert source.config.model.autocast is False  # what it was trained in stays known
    for options in ({"format": "native"}, {"config": "x.json"}, {"overrides": ["prompt.history_steps=9"]}):
        with pytest.raises(ValueError, match="is a run, which has its own settings"):
            find(run, **options)


def test_a_run_of_chat_rows_is_asked_as_they_are(run, tmp_path):
    checkpoint = tmp_path / "talk" / "checkpoints" / "step_000007"
    shutil.copytree(run / "checkpoints" / "step_000007", checkpoint)
    (checkpoint.parent / "last").symlink_to(checkpoint.name)
    values = json.loads((checkpoint / "config.json").read_text())
    values["data"]["sources"] = [{"path": "talk.jsonl", "kind": "chat"}]
    for saved, expected in ((False, False), (None, True), (True, True)):  # None: of a version without the setting
        values["prompt"] = {"format": "native"} | ({} if saved is None else {"ask_for_thought": saved})
        (checkpoint / "config.json").write_text(json.dumps(values))
        (tmp_path / AGENT_CONFIG).write_text(json.dumps(values))
        assert find(tmp_path / "talk").config.prompt.ask_for_thought is expected
        assert settings_of(str(tmp_path), None).prompt.ask_for_thought is expected
        assert settings_of("served", tmp_path / AGENT_CONFIG).prompt.ask_for_thought is expected
        config = build_config(values | {"prompt": {"ask_for_thought": False}})
        if expected:
            with pytest.raises(ValueError, match=r"prompt.ask_for_thought is False, True in the checkpoint"):
                describe_changes(values, config)
        else:
            assert "ask_for_thought" not in describe_changes(values, config)


def test_weights_take_the_settings_beside_them(run, base, tmp_path):
    merged = tmp_path / "merged"
    shutil.copytree(base, merged)
    assert find(merged).config.prompt.format == "native" and find(merged).run is None
    shutil.copy(run / "checkpoints" / "last" / "config.json", merged / "qwenvl_agent.json")
    settings = find(merged, overrides=["eval.batch_size=1"]).config
    assert (settings.prompt.format, settings.model.path, settings.model.method) == ("plain", str(merged), "lora")
    assert (settings.eval.batch_size, settings.eval.max_new_tokens) == (1, 5)
    assert find(merged, format="hybrid").config.prompt.format == "hybrid"
    served = find("the-servers-name", endpoint="http://127.0.0.1:1/v1", config=merged / "qwenvl_agent.json")
    assert (served.path, served.config.model.path) == ("the-servers-name", str(base))
    with pytest.raises(ValueError, match="which is no run"):
        find(merged, checkpoint="best")


def test_a_policy_answers_requests_of_any_world(run):
    request = Request("You walk in a park.", (), (), Observation("Where to?"))
    greedy = load_policy(run, overrides=["eval.temperature=0"], device="cpu")
    (answer,) = greedy.act([request])
    assert answer.text or answer.error
    assert answer == load_policy(run / "checkpoints" / "last", device="cpu").act([request, request])[1]
    with pytest.raises(ValueError, match="without a server"):
        load_policy(run, fields={"skip_special_tokens": False}, device="cpu")


def test_a_result_says_what_it_is_of(run, base):
    source = find(run)
    about = describe(source, open_policy(source, device="cpu", blank_pictures=True))
    assert about["precision"] == {"evaluated": "float32", "trained": "float32"} and about["blank_pictures"] is True
    assert (about["checkpoint"], about["dataset_hash"]) == ("step_000007", "abc123")
    assert about["processor"]["name"] == str(base) and about["processor"]["max_pixels"] == 16 * 32**2
    assert source.weights.startswith("step_000007 ")
    source = find(base)
    about = describe(source, open_policy(source, device="cpu"))
    assert "checkpoint" not in about and "trained" not in about["precision"]


def test_one_function_makes_the_collator_of_a_config(run, base):
    source = find(run)
    collator = build_collator(build_processor(source.config.model, source.config.vision), source.config)
    assert (collator.fmt.name, collator.vision_cfg) == ("plain", source.config.vision)
