import json
from pathlib import Path

import pytest

from qwenvl_agent.config import LANGUAGE_PROJECTIONS, load_config, to_json

CONFIGS = sorted(p for p in (Path(__file__).parent.parent / "configs").glob("*.json") if p.name != "schema.json")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_is_named_after_its_file(path):
    assert load_config(path).name == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_states_only_what_it_needs_once(path):
    """Written again from its dataclasses, nothing is lost and nothing is misspelt."""

    def contains(whole, part):
        if isinstance(part, dict):
            return all(key in whole and contains(whole[key], value) for key, value in part.items())
        if isinstance(part, list):
            return all(contains(w, p) for w, p in zip(whole, part, strict=True))
        return whole == part

    written = json.loads(path.read_text(encoding="utf-8"))
    assert written.pop("$schema") == "schema.json"
    assert contains(to_json(load_config(path)), written)


def test_safari_2b_is_the_promised_qlora():
    config = load_config(CONFIGS[0].parent / "safari_2b.json")
    model, train = config.model, config.train
    assert (model.path, model.method, model.autocast) == ("Qwen/Qwen3-VL-2B-Instruct", "qlora", "auto")
    assert (model.lora_rank, model.lora_alpha, model.lora_dropout) == (16, 32, 0.05)
    assert model.lora_targets == LANGUAGE_PROJECTIONS and model.gradient_checkpointing
    assert (train.batch_size, train.accumulation, train.learning_rate, train.epochs) == (2, 4, 2e-4, 3)


def test_8b_configs_are_sharded():
    adapters, full = (load_config(CONFIGS[0].parent / f"{name}.json") for name in ("safari_8b", "safari_8b_full"))
    assert (adapters.model.method, adapters.train.zero_stage, adapters.train.cpu_offload) == ("lora", 3, False)
    assert (full.model.method, full.train.zero_stage, full.train.cpu_offload) == ("full", 3, True)


def test_computer_use_is_4_bit_on_one_card_and_learns_from_a_few_samples():
    for size in ("2b", "8b"):
        config = load_config(CONFIGS[0].parent / f"computer_use_{size}.json")
        model, train = config.model, config.train
        assert (model.path, model.method) == (f"Qwen/Qwen3-VL-{size.upper()}-Instruct", "qlora")
        assert (model.lora_rank, model.lora_alpha, train.learning_rate, train.zero_stage) == (16, 32, 2e-4, 0)
        assert [source.kind for source in config.data.sources] == ["computer"]
        # Of 10 samples one is held out: 9 x 3 epochs are still several optimizer steps.
        assert 9 * train.epochs // (train.batch_size * train.accumulation) >= 6
        # A screenshot of 1280 x 800 px (1,000 tokens) is seen as it is.
        assert config.vision.tiles == 0 and config.vision.max_tokens_per_image >= 40 * 25


def test_a_few_samples_are_a_few_steps_that_end_early():
    train = load_config(CONFIGS[0].parent / "computer_use_8b.json").train
    steps = {n: -(-train.epochs * n // (train.batch_size * train.accumulation)) for n in (9, 45)}
    assert steps == {9: 7, 45: 34}  # of 10 and 50 samples a tenth is held out; docs/ANNOTATE.md states them
    assert train.patience * train.eval_every < steps[45]


def test_perception_sees_as_the_agent_will():
    perception, safari = (load_config(CONFIGS[0].parent / f"{name}.json") for name in ("perception_2b", "safari_2b"))
    assert (perception.vision, perception.prompt, perception.model) == (safari.vision, safari.prompt, safari.model)
    assert perception.data.sources != safari.data.sources and perception.eval.suite == "none"
