"""What holds for every family, shown on a tiny member of each: training, saving, exporting, generating.

What is of one family alone is in its own file, tests/test_FAMILY.py.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_packing import losses_and_gradient
from test_packing import row as packing_row
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

from qwenvl_agent.config import ModelConfig, PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.masks import MaskAudit
from qwenvl_agent.export import export_run, load_plain, probe_inputs, probe_logits
from qwenvl_agent.families import FAMILIES
from qwenvl_agent.formats import FORMATS, formats_of
from qwenvl_agent.inference.decoding import decode
from qwenvl_agent.inference.load import find_run, load_model
from qwenvl_agent.model.build import (
    build_for_evaluation,
    build_model,
    build_processor,
    family_of,
    manifest,
    save_weights,
)
from qwenvl_agent.model.call import model_inputs
from qwenvl_agent.model.features import FeatureCache
from qwenvl_agent.model.precision import choose_for_evaluation
from qwenvl_agent.planning.vram import find_architecture, trainable_parameters
from qwenvl_agent.schema import Observation, Picture, Request, Tool
from qwenvl_agent.training.loss import token_losses
from train import train

VISION = VisionConfig(max_tokens_per_image=16, min_tokens_per_image=4)
LORA = {"method": "lora", "lora_rank": 4, "dtype": "float32", "autocast": False}
ROWS = [packing_row(0), packing_row(1), packing_row(2, history=1), packing_row(3, pictures=0)]
ROWS += [packing_row(4, system="You run."), packing_row(5, pictures=2)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def base(family, tmp_path_factory) -> str:
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp(family.model_type) / "base", family=family))


def methods(family) -> dict[str, dict]:
    """What may train in a family, by name."""
    ways = {
        "full": {"method": "full"},
        "lora": {},
        "qlora": {"method": "qlora", "dtype": "bfloat16", "autocast": True},
        "lora_vision": {"lora_places": ("language", "merger", "vision")},
    }
    if family.paths.fused_experts:
        ways["experts"] = {"lora_places": ("language", "experts"), "lora_dropout": 0.0}
    return {name: LORA | settings for name, settings in ways.items()}


def collator_of(base: str, **prompt) -> Collator:
    processor = build_processor(ModelConfig(path=base, **LORA), VISION)
    prompt_cfg = PromptConfig(**{"history_steps": 1, "supervise_history": True, **prompt})
    fmt = formats_of(processor.family)[prompt_cfg.format]
    return Collator(processor, fmt, prompt_cfg, VISION, TrainConfig(weight_thought=0.5))


def stir(model, seed: int = 0) -> None:
    """As if it had learned: an adapter that has not changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


# training


@pytest.mark.parametrize("name", ["full", "lora", "qlora", "lora_vision", "experts"])
def test_what_was_asked_trains_and_comes_back_as_it_was_saved(family, base, tmp_path, name):
    settings = methods(family).get(name)
    if settings is None:
        pytest.skip(f"{family.title} has no experts")
    config = ModelConfig(path=base, **settings)
    batch = collator_of(base)(ROWS[:3])
    model = build_model(config, "cpu").train()
    sizes = {e["name"]: np.prod(e["shape"]) for e in manifest(model) if e["trainable"]}
    assert sum(sizes.values()) == trainable_parameters(config, find_architecture(base))
    if family.paths.frozen:
        assert not [trained for trained in sizes if family.paths.frozen in trained]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        token_losses(model, batch).weighted_sum.backward()
        optimizer.step()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    assert silent == [], "no gradient after two steps"
    save_weights(model, tmp_path / "model")
    again = build_model(config, "cpu", tmp_path / "model")
    with torch.no_grad():
        wanted = token_losses(model.eval(), batch).losses
        assert torch.equal(token_losses(again, batch).losses, wanted)


def test_a_step_is_the_same_in_one_batch_in_many_and_in_packs(family, base):
    """Losses of each row, and the gradient over all of them; in packs only where the family can be packed."""
    model = build_model(ModelConfig(path=base, **LORA | {"method": "full", "attention": "sdpa"}), "cpu").train()
    collator = collator_of(base)
    wanted, total, gradient = losses_and_gradient(model, collator(ROWS))
    scale = gradient.abs().max().item()
    ways = {"one by one": ([[row] for row in ROWS], 0), "in twos": ([ROWS[i : i + 2] for i in (0, 2, 4)], 0)}
    if family.packs:
        ways["in packs"] = ([ROWS], 400)
    for name, (batches, pack_tokens) in ways.items():
        parts = [losses_and_gradient(model, collator(rows, pack_tokens)) for rows in batches]
        for losses, expected in zip([row for part in parts for row in part[0]], wanted, strict=True):
            torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(sum(part[1] for part in parts), total, rtol=1e-5, atol=0, msg=name)
        torch.testing.assert_close(sum(part[2] for part in parts), gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_checkpointing_changes_no_gradient(family, base):
    batch, gradients = collator_of(base)(ROWS[:2]), []
    settings = methods(family).get("experts", LORA)
    for checkpointing in (True, False):
        config = ModelConfig(path=base, **settings, gradient_checkpointing=checkpointing)
        torch.manual_seed(0)
        model = build_model(config, "cpu").train()
        stir(model)
        torch.manual_seed(1)
        token_losses(model, batch).weighted_sum.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_an_interrupted_run_goes_on_to_the_bit(family, base, tmp_path, capsys):
    data = save_dataset(tmp_path / "data", 12)
    settings = methods(family).get("experts", LORA)
    config = tiny_config(
        tmp_path, base, data, model=settings, train={"max_steps": 4, "save_every": 2}, eval={"step_rows": 2}
    )
    train(config)
    if family.remark:
        assert family.remark in capsys.readouterr().out
    checkpoints = config.run_dir / "checkpoints"
    whole = load_file(checkpoints / "step_000004/model/adapter_model.safetensors")
    losses = losses_of(config.run_dir)
    assert losses[4] < losses[1]
    shutil.rmtree(checkpoints / "step_000004")
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to("step_000002")
    train(config, resume=True)
    assert losses_of(config.run_dir) == losses
    again = load_file(checkpoints / "step_000004/model/adapter_model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def losses_of(run_dir) -> dict[int, float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


@pytest.mark.parametrize("name", FORMATS)
def test_the_audit_finds_every_mask_right(family, base, name):
    learns_history = name != "think"
    collator = collator_of(base, format=name, supervise_history=learns_history)
    audit = MaskAudit(collator.tokenizer, learns_history, family, collator.fmt.opening)
    for one in ROWS:
        sample = collator.sample(one)
        encoded = sample.encoded
        counts = audit.check(encoded.input_ids, sample.labels, sample.parts, encoded.spans, encoded.num_turns)
        assert counts["call"] and counts["end"] == 1 + learns_history * len(one.request.history)
        prompt = collator.encode(one.request, None, "r").input_ids
        assert np.array_equal(prompt, encoded.input_ids[: len(prompt)])


# saving for others


@pytest.mark.parametrize("name", ["full", "lora", "qlora", "experts"])
def test_an_exported_folder_answers_like_the_run_and_is_stored_as_published(family, base, tmp_path, name):
    settings = methods(family).get(name)
    if settings is None:
        pytest.skip(f"{family.title} has no experts")
    config = tiny_config(tmp_path, base, tmp_path / "dataset.jsonl", model=settings)
    model = build_model(config.model, "cpu")
    stir(model)
    saved = config.run_dir / "checkpoints/step_000003"
    save_weights(model, saved / "model")
    save_config(config, saved / "config.json")
    made = export_run(saved, tmp_path / "agent", device="cpu")
    assert made.merged.mean_kl < 1e-3
    loaded, live, processor = load_model(find_run(saved), device="cpu")
    written = load_plain(made.directory, loaded.model, "cpu")
    assert probe_logits(written, probe_inputs(loaded, processor)).isfinite().all()
    tensors = load_file(made.directory / "model.safetensors")
    names = {n for n, _ in written.named_parameters()}
    assert names <= set(tensors) | {"lm_head.weight"}
    for key, tensor in tensors.items():
        if key in names:
            assert tensor.shape == family.stored(key, written.get_parameter(key)).shape


def test_what_4_bit_experts_and_layers_answer_is_widened_not_changed(family, base):
    """In float32 the same packed numbers, computed more exactly."""
    config = ModelConfig(path=base, **methods(family)["qlora"])
    inputs = model_inputs(collator_of(base).encode_prompt([ROWS[0].request]))
    precision = choose_for_evaluation(config, "cpu", False)
    widened = build_for_evaluation(config, precision, "cpu", None)
    assert precision.model.precision == "float32"
    low, high = probe_logits(build_model(config, "cpu"), inputs), probe_logits(widened, inputs)
    assert 0 < (low - high).abs().max() < 0.1


# generating

TOOLS = (Tool("move", "Walk.", {"type": "object", "properties": {"direction": {"type": "string"}}}),)


def question(colour: str, text: str = "Where?", width: int = 64) -> Request:
    picture = Picture.from_image(Image.new("RGB", (width, 64), colour))
    return Request("You walk.", TOOLS, (), Observation(text, (picture,)))


QUESTIONS = [question("red"), question("blue", "Where is the animal of the mission?", 128), question("green", "Go on")]


def test_a_batch_writes_what_generate_writes_one_by_one(family, base):
    model = build_model(ModelConfig(path=base, **LORA | {"method": "full"}), "cpu")
    torch.manual_seed(0)
    with torch.no_grad():  # its layers count for more than its embedding, or it would repeat its last token for ever
        for parameter in model.get_submodule(family.paths.layers).parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.4)
    collator = collator_of(base)
    wanted = []
    for one in QUESTIONS:
        inputs = model_inputs(collator.encode_prompt([one]))
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=10, eos_token_id=None, pad_token_id=0)
        wanted.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    inputs = model_inputs(collator.encode_prompt(QUESTIONS))
    assert decode(model, inputs, end_id=-1, max_new_tokens=10) == wanted
    assert len({tuple(ids) for ids in wanted}) > 1  # else it would prove little
    end_id = wanted[0][4]  # ends at least one row in its midst
    ended = [ids[: ids.index(end_id) + 1] if end_id in ids else ids for ids in wanted]
    assert decode(model, inputs, end_id=end_id, max_new_tokens=10) == ended


def test_features_of_a_frozen_tower_take_the_place_of_pictures(family, base, tmp_path):
    model = build_model(ModelConfig(path=base, **LORA), "cpu").train()
    assert family_of(model) is family
    features, collator = FeatureCache(tmp_path / "features", 10**8, model), collator_of(base)
    wanted = token_losses(model.eval(), collator(ROWS[:2])).losses
    features.attach(collator(ROWS[:2], 0, features.directory))
    kept = features.attach(collator(ROWS[:2], 0, features.directory))
    assert "patches" not in kept
    torch.testing.assert_close(token_losses(model, kept).losses, wanted)
