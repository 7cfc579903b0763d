import copy
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from bitsandbytes.nn import Linear4bit
from PIL import Image
from safetensors.torch import load_file
from tiny_run import save_tiny_checkpoint
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

from qwenvl_agent.config import ModelConfig, VisionConfig
from qwenvl_agent.families import DEFAULT
from qwenvl_agent.model.build import (
    base_of,
    build_model,
    build_processor,
    check_manifest,
    check_probe_pictures,
    choose_attention,
    device_type,
    linear_4bit,
    manifest,
    save_weights,
)
from qwenvl_agent.model.tiny import build_tiny_tokenizer
from qwenvl_agent.planning.vram import adapter_parameters, find_architecture
from qwenvl_agent.training.gradients import GradientCheck

VISION = VisionConfig(max_tokens_per_image=64, min_tokens_per_image=4)
METHODS = ("full", "lora", "qlora")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def config(base):
    return ModelConfig(path=str(base), method="lora", lora_rank=4, dtype="float32", autocast=False)


def probe(config) -> dict:
    """A prompt with one picture."""
    processor = build_processor(config, VISION)
    pixels = processor.image_processor(images=[Image.linear_gradient("L").convert("RGB")], return_tensors="pt")
    num_tokens = int(pixels["image_grid_thw"].prod()) // processor.geometry.merge_size**2
    text = "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * num_tokens + "<|vision_end|>go<|im_end|>\n"
    ids = torch.tensor([processor.tokenizer(text)["input_ids"]])
    is_image = ids == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": is_image.int(), **pixels}


def logits_of(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs, use_cache=False).logits.float()


def train_steps(model, inputs, are_first: bool = True) -> None:
    """Two optimizer steps that check the gradients as the loop does."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    check_gradients = GradientCheck(Accelerator(cpu=True), model)
    if not are_first:
        check_gradients.num_steps = dict.fromkeys(check_gradients.num_steps, 1)
    for _ in range(2):
        model(**inputs, use_cache=False).logits.float().logsumexp(-1).sum().backward()
        check_gradients(num_pictures=1)
        check_gradients.read()
        optimizer.step()
        optimizer.zero_grad()


# what trains


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", METHODS)
def test_what_trains_is_what_was_asked(config, method, dtype):
    config = replace(config, method=method, dtype=dtype, autocast=dtype == "bfloat16")
    model = build_model(config)
    entries = manifest(model)
    trainable = [e for e in entries if e["trainable"]]
    assert {e["dtype"] for e in trainable} == {"float32"}
    assert {e["dtype"] for e in entries if not e["trainable"]} <= {dtype, "uint8"}
    if method == "full":
        assert {e["name"] for e in trainable} == {e["name"] for e in entries if "visual" not in e["name"]}
    else:
        assert len(trainable) == 2 * 7 * 2  # layers x projections x (A, B)
        assert all("language_model" in e["name"] and "lora_" in e["name"] for e in trainable)
    train_steps(model, probe(config))


MERGER, VISION_TOO = ("language", "merger"), ("language", "merger", "vision")


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize(
    ("places", "in_vision"), [(MERGER, 6_656), (VISION_TOO, 6_656 + 4_096), (("language", "vision"), 4_096)]
)
def test_adapters_are_where_lora_places_says(config, tmp_path, method, places, in_vision):
    """Rank 4. A merger: 256 + 256 and 256 + 64, two of them; a block: 64 + 192, 64 + 64, 64 + 256 and 256 + 64."""
    dtype = "bfloat16" if method == "qlora" else "float32"
    config = replace(config, method=method, lora_places=places, dtype=dtype, autocast=method == "qlora")
    inputs, model = probe(config), build_model(config)
    sizes = [(n, p.numel()) for n, p in model.named_parameters() if p.requires_grad]
    assert sum(size for name, size in sizes if "visual" in name) == in_vision
    assert sum(size for _, size in sizes) == adapter_parameters(config, find_architecture(config.path))
    assert not [name for name in linear_4bit(model) if "visual" in name]
    before = logits_of(model, inputs)
    train_steps(model, inputs)  # a gradient in every adapter
    live = logits_of(model, inputs)
    save_weights(model, tmp_path / "model")
    assert torch.equal(logits_of(build_model(config, weights_dir=tmp_path / "model"), inputs), live)
    assert (live - before).abs().max() > 1e-2


def test_nf4_covers_the_projections_and_never_the_vision_tower(config):
    model = build_model(replace(config, method="qlora"))
    packed = linear_4bit(model)
    assert len(packed) == 2 * 7 and all(".language_model.layers." in name for name in packed)
    for module in packed.values():
        assert (module.weight.quant_state.quant_type, module.weight.quant_state.nested) == ("nf4", True)


@pytest.mark.parametrize("method", METHODS)
def test_an_evaluation_does_not_end_the_training(config, method):
    """bitsandbytes repacks weights for inference on a CPU, and then lets no gradient through."""
    model, inputs = build_model(replace(config, method=method, autocast=True)), probe(config)
    train_steps(model, inputs)
    logits_of(model, inputs)
    train_steps(model, inputs, are_first=False)


def test_train_vision_trains_the_tower_too(config):
    config = replace(config, method="full", train_vision=True)
    model = build_model(config)
    assert all(e["trainable"] and e["dtype"] == "float32" for e in manifest(model))
    train_steps(model, probe(config))


def test_the_manifest_check_finds_what_is_wrong(config):
    model = build_model(config)
    tower, adapter = model.get_base_model().model.visual, next(p for p in model.parameters() if p.requires_grad)
    tower.pos_embed.weight.requires_grad_(True)
    with pytest.raises(AssertionError, match="trainable is wrong.*pos_embed"):
        check_manifest(model, config)
    tower.pos_embed.weight.requires_grad_(False)
    adapter.data = adapter.data.bfloat16()
    with pytest.raises(AssertionError, match="dtype is not float32.*lora_A"):
        check_manifest(model, config)
    adapter.data = adapter.data.float()
    check_manifest(model, config)
    tower.merger.linear_fc1 = Linear4bit(4, 4)
    with pytest.raises(AssertionError, match="4-bit layers in the vision tower"):
        check_manifest(model, config)


def test_the_gradient_check_finds_what_does_not_train(config):
    model = build_model(config)
    check_gradients = GradientCheck(Accelerator(cpu=True), model)
    with pytest.raises(AssertionError, match=r"lora_A\.default\.weight has no gradient, and requires_grad is True"):
        check_gradients(num_pictures=1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    check_gradients(num_pictures=1)
    check_gradients.read()  # at the first step LoRA's A has none
    check_gradients(num_pictures=1)
    with pytest.raises(AssertionError, match="zero everywhere"):
        check_gradients.read()
    frozen = model.get_input_embeddings().weight
    frozen.grad = torch.zeros_like(frozen)
    with pytest.raises(AssertionError, match=r"embed_tokens\.weight has a gradient, and requires_grad is False"):
        GradientCheck(Accelerator(cpu=True), model)(num_pictures=1)


# how it computes


def test_a_frozen_vision_tower_keeps_no_graph(config):
    inputs = probe(config)
    pixels = inputs["pixel_values"].requires_grad_()
    for cfg, has_graph in ((config, False), (replace(config, method="full", train_vision=True), True)):
        model = build_model(cfg).train()
        tower = (model.get_base_model() if cfg.method == "lora" else model).model.visual
        out = tower(pixels, grid_thw=inputs["image_grid_thw"])
        features = [out.pooler_output, *out.deepstack_features]
        assert [f.requires_grad for f in features] == [has_graph] * 2


def test_the_frozen_tower_sees_the_same_under_every_method(config):
    """In the dtype of its weights, with rotary frequencies in float32 as published."""
    config, inputs = replace(config, dtype="bfloat16", autocast=True), probe(config)
    seen = {}
    for method in METHODS:
        tower = base_of(build_model(replace(config, method=method))).model.visual
        seen[method] = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        assert {buffer.dtype for buffer in tower.buffers()} == {torch.float32}
    assert torch.equal(seen["full"], seen["lora"]) and torch.equal(seen["qlora"], seen["lora"])


def test_weights_go_where_autocast_is_bound_to(config, monkeypatch):
    """Without a device both are the GPU's where there is one, so here the load fails; weights never stay behind."""
    assert {p.device.type for p in build_model(config).parameters()} == {device_type(None)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises((RuntimeError, AssertionError)):
        build_model(replace(config, attention="eager"))


def test_with_adapters_in_the_mergers_alone_the_blocks_keep_no_graph(config):
    inputs, seen = probe(config), []
    model = build_model(replace(config, lora_places=MERGER)).train()
    tower = model.get_base_model().model.visual
    tower.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out.requires_grad))
    out = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    assert seen == [False] and out.pooler_output.requires_grad and out.deepstack_features[0].requires_grad


def test_the_patch_projection_equals_the_convolution(config, base):
    ours = build_model(config).get_base_model().model.visual.patch_embed
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32).model.visual.patch_embed
    pixels = probe(config)["pixel_values"]
    torch.testing.assert_close(ours(pixels), theirs(pixels), rtol=1e-5, atol=1e-6)
    assert type(theirs.proj) is nn.Conv3d and type(ours.proj) is not nn.Conv3d


@pytest.mark.parametrize("places", [("language",), VISION_TOO])
def test_checkpointing_changes_no_gradient(config, places):
    inputs, gradients = probe(config), []
    torch.manual_seed(0)
    model = build_model(replace(config, lora_dropout=0.5, lora_places=places))
    plain = copy.deepcopy(model)
    plain.get_base_model().activation_checkpointing_disable()
    for each in (model, plain):
        torch.manual_seed(1)
        each.train()(**inputs, use_cache=False).logits.logsumexp(-1).sum().backward()
        gradients.append([p.grad for p in each.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_adapters_without_a_float32_copy_of_their_input_compute_the_same(config):
    """The copy is peft's default; under autocast its product rounds it again."""
    model = build_model(replace(config, autocast=True, dtype="bfloat16", lora_dropout=0.0)).train()
    layers = [module for module in model.modules() if hasattr(module, "cast_input_dtype_enabled")]
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    outcomes = []
    for is_copied in (False, True):
        assert all(layer.cast_input_dtype_enabled == is_copied for layer in layers) and layers
        logits = model(**probe(config), use_cache=False).logits
        gradients = torch.autograd.grad(
            logits.float().logsumexp(-1).sum(), [p for p in model.parameters() if p.requires_grad]
        )
        outcomes.append([logits, *gradients])
        for layer in layers:
            layer.cast_input_dtype_enabled = True
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_checkpointing_needs_no_gradient_at_the_embeddings(config):
    model = build_model(config)
    assert model.get_base_model().is_activation_checkpointing
    assert not model.get_input_embeddings()(torch.tensor([[1]])).requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_autocast_is_bound_to_the_model(config, method):
    """Training, scoring and generation compute alike, whoever calls."""
    config = replace(config, method=method, autocast=True)
    model, inputs = build_model(config), probe(config)
    dtypes = []
    base = model if method == "full" else model.get_base_model()
    base.lm_head.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    logits_of(model, inputs)
    model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert set(dtypes) == {torch.bfloat16}


# saving and loading


@pytest.mark.parametrize("method", METHODS)
def test_saved_weights_give_the_live_models_logits(config, method, tmp_path):
    config = replace(config, method=method)
    inputs, model = probe(config), build_model(config)
    before = logits_of(model, inputs)
    train_steps(model, inputs)
    live = logits_of(model, inputs)
    save_weights(model, tmp_path / "model")
    reloaded = build_model(config, weights_dir=tmp_path / "model")
    assert torch.equal(logits_of(reloaded, inputs), live)
    assert (live - before).abs().max() > 1e-2
    assert not list(tmp_path.rglob("*.bin"))


def test_a_saved_adapter_holds_every_matrix_in_float32(config, tmp_path):
    model = build_model(replace(config, dtype="bfloat16", autocast=True))
    save_weights(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in trainable)
    assert {t.dtype for t in tensors.values()} == {torch.float32}


# processors and refusals


def test_the_vision_budget_is_set_and_proved(config):
    processor = build_processor(config, VISION)
    big = processor.image_processor(images=[Image.new("RGB", (2000, 1500))], return_tensors="pt")
    assert int(big["image_grid_thw"].prod()) // 4 <= 64
    assert (processor.geometry.min_pixels, processor.geometry.max_pixels) == (4 * 32**2, 64 * 32**2)
    with pytest.raises(AssertionError, match="image processor .* tokens, planner"):
        check_probe_pictures(processor.image_processor, replace(processor.geometry, max_pixels=16 * 32**2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_vl"}, "of the family 'qwen2_vl'"),
    ],
)
def test_other_families_are_refused_before_weights_are_read(base, tmp_path, config, change, message):
    values = json.loads((base / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        build_model(replace(config, path=str(tmp_path)))


def test_a_path_that_is_no_checkpoint_is_refused_in_one_line(tmp_path, config):
    for path in (str(tmp_path), "nobody/no-such-model"):
        with pytest.raises(ValueError, match="cannot be read") as refused:
            build_model(replace(config, path=path))
        assert "\n" not in str(refused.value)


def test_the_tiny_tokenizer_has_the_published_added_tokens_in_order():
    tokenizer = build_tiny_tokenizer(["the cat sat"], 300)
    ids = tokenizer.convert_tokens_to_ids(list(DEFAULT.added_tokens))
    assert ids == list(range(ids[0], ids[0] + 26)) and len(tokenizer) == ids[-1] + 1
    text = "a<|im_start|>cat 안녕\n<tool_call>{}</tool_call><|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert "<tool_call>" in tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="model.compile needs a C++ compiler on a CPU")
def test_compiled_blocks_give_the_same_loss_and_gradients(base):
    settings = {"path": str(base), "method": "full", "dtype": "float32", "autocast": False}
    settings |= {"gradient_checkpointing": False}
    losses, gradients = [], []
    for is_compiled in (False, True):
        model = build_model(ModelConfig(**settings, compile=is_compiled), "cpu").train()
        for num_tokens in (17, 23):  # one program for all lengths
            ids = torch.arange(2 * num_tokens).reshape(2, num_tokens)
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[:2], losses[2:], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_compiling_without_a_compiler_is_refused(base, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    cfg = ModelConfig(path=str(base), method="full", compile=True)
    with pytest.raises(ValueError, match="no C\\+\\+ compiler .*model.compile=false"):
        build_model(cfg, "cpu")


def gradient_and_calls(base, again) -> tuple[torch.Tensor, list[int]]:
    """Of a model with dropout; how often each of its two layers begins its MLP in forward and backward."""
    torch.manual_seed(0)
    settings = {"method": "lora", "lora_rank": 4, "lora_dropout": 0.3, "dtype": "float32", "autocast": False}
    model = build_model(ModelConfig(path=str(base), **settings, gradient_checkpointing=again), "cpu").train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    layers = base_of(model).model.language_model.layers
    calls = []
    for i, layer in enumerate(layers):
        layer.mlp.register_forward_pre_hook(lambda *_, i=i: calls.append(i))
    ids = torch.arange(34).reshape(2, 17)
    torch.manual_seed(1)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return gradient, [calls.count(i) for i in range(len(layers))]


@pytest.mark.parametrize(("again", "calls"), [(1, [2, 1]), (True, [2, 2]), ("auto", [2, 2]), (9, [2, 2])])
def test_the_first_layers_are_computed_again_and_gradients_are_the_same(base, again, calls):
    plain, once = gradient_and_calls(base, False)
    gradient, found = gradient_and_calls(base, again)
    assert (once, found) == ([1, 1], calls)
    assert torch.equal(gradient, plain)


@pytest.mark.parametrize("again", ["some", -1])
def test_layers_that_cannot_be_meant_are_refused(again):
    with pytest.raises(ValueError, match="model.gradient_checkpointing is .*use true, false, auto or a number"):
        ModelConfig(path="tiny", gradient_checkpointing=again)


def test_an_adapters_names_are_those_that_vllm_maps(base, tmp_path):
    """It strips the prefix, and knows the language model's seven projections by their names in the checkpoint."""
    model = build_model(ModelConfig(path=str(base), method="lora", lora_rank=4, dtype="float32", autocast=False), "cpu")
    save_weights(model, tmp_path)
    layer = r"base_model\.model\.model\.language_model\.layers\.\d+\."
    projection = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.lora_[AB]\.weight"
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert len(names) == 2 * 7 * 2 and all(re.fullmatch(layer + projection, name) for name in names)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["r"], settings["use_dora"], settings["modules_to_save"], settings["bias"]) == (
        4,
        False,
        None,
        "none",
    )


def test_attention_goes_by_the_device_and_half_precision_kernels_are_not_asked_for_float32():
    settings = ModelConfig(path="x", method="lora", dtype="bfloat16", autocast=True)
    assert choose_attention(settings, "cuda") == "sdpa" and choose_attention(settings, "cpu") == "eager"
    flash = replace(settings, attention="flash_attention_2")
    assert choose_attention(flash, "cuda") == "flash_attention_2"
    with pytest.raises(ValueError, match="model.attention is flash_attention_2 in float32: .*set model.autocast=true"):
        choose_attention(replace(flash, autocast=False, dtype="float32"), "cuda")
