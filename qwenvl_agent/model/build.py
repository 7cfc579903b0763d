"""Models and processors from a config: `build_model` loads, attaches adapters, and says what trains.

One decision: a model computes in the same precision wherever it is called, because `build_model` binds autocast (and
no_grad for a frozen vision tower) to the forward functions themselves. Training, held-out loss and generation cannot
differ by a context that somebody forgot.
"""

import functools
import importlib.util
import json
import math
import os
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from qwenvl_agent.config import SHIPPED_BASES, ModelConfig, VisionConfig
from qwenvl_agent.model.kernels import Dropout, Head, PatchProjection, keep_compiled_code_apart
from qwenvl_agent.model.precision import Precision, choose
from qwenvl_agent.model.shards import convert, held, loads_slices, slices_loaded_as, whole_shape
from qwenvl_agent.requirements import check_installed
from qwenvl_agent.vision import Geometry, num_image_tokens

ASSETS_DIR = Path(__file__).parents[1] / "assets"

# Sizes of the tiny family: the same classes as the published models, so every code path is the real one.
PRESETS = {
    "tiny": {
        "hidden_size": 128,
        "num_layers": 4,
        "num_heads": 2,
        "vision_hidden_size": 64,
        "vision_depth": 2,
        "merge_size": 1,
        "max_grid": 10,
    },
    "tiny_screens": {
        "hidden_size": 128,
        "num_layers": 4,
        "num_heads": 2,
        "vision_hidden_size": 64,
        "vision_depth": 2,
        "max_grid": 16,
    },
    "test": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "vision_hidden_size": 64, "vision_depth": 1},
}
# Qwen3-VL's added tokens in the order of their ids, and whether the tokenizer calls them special.
ADDED_TOKENS = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<|object_ref_start|>": True,
    "<|object_ref_end|>": True,
    "<|box_start|>": True,
    "<|box_end|>": True,
    "<|quad_start|>": True,
    "<|quad_end|>": True,
    "<|vision_start|>": True,
    "<|vision_end|>": True,
    "<|vision_pad|>": True,
    "<|image_pad|>": True,
    "<|video_pad|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<|fim_prefix|>": False,
    "<|fim_middle|>": False,
    "<|fim_suffix|>": False,
    "<|fim_pad|>": False,
    "<|repo_name|>": False,
    "<|file_sep|>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    "<think>": False,
    "</think>": False,
}


@dataclass(frozen=True)
class Processor:
    """What turns rows into tensors; `geometry` is what the image processor was verified to do."""

    tokenizer: object
    image_processor: object
    geometry: Geometry
    name: str

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))


def build_processor(model_cfg: ModelConfig, vision_cfg: VisionConfig) -> Processor:
    """Tokenizer and image processor with the vision budget set, and proved by probe pictures."""
    from transformers import AutoImageProcessor, AutoTokenizer

    path = checkpoint_path(model_cfg.path)
    vision = load_model_config(path).vision_config
    token_px = vision.patch_size * vision.spatial_merge_size
    geometry = Geometry(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        min_pixels=vision_cfg.min_tokens_per_image * token_px**2,
        max_pixels=vision_cfg.max_tokens_per_image * token_px**2,
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    refuse_thinking(path, tokenizer.chat_template)
    # `min_pixels` and `max_pixels` would be accepted and ignored here: only `size` sets the budget.
    size = {"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels}
    image_processor = AutoImageProcessor.from_pretrained(path, size=size)
    check_probe_pictures(image_processor, geometry)
    return Processor(tokenizer, image_processor, geometry, model_cfg.path)


def check_probe_pictures(image_processor, geometry: Geometry) -> None:
    """Assert that pictures below, inside and above the budget take the number of tokens that the planner says."""
    from PIL import Image

    side = math.isqrt(geometry.max_pixels)
    for width, height in ((geometry.token_px, geometry.token_px), (side // 2 + 5, side // 2), (side + 99, side + 33)):
        grid = image_processor(images=[Image.new("RGB", (width, height))], return_tensors="pt")["image_grid_thw"]
        num_tokens = int(grid.prod()) // geometry.merge_size**2
        planned = num_image_tokens(height, width, geometry)
        assert num_tokens == planned, f"{width}x{height} px: image processor {num_tokens} tokens, planner {planned}"


def checkpoint_path(path: str) -> str:
    """The folder of a base that the package ships, by its name; anything else is transformers' business."""
    return str(ASSETS_DIR / path) if path in SHIPPED_BASES else path


def load_model_config(path: str):
    """The checkpoint's config; ValueError, before any weight is read, for what is not Qwen3-VL Instruct."""
    from transformers import AutoConfig

    check_installed()
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path {path!r} cannot be read ({error}); give a hub id or a local folder") from None
    if config.model_type == "qwen3_vl_moe":
        raise ValueError(
            f"model.path {path!r} is a mixture of experts: adapters and memory plans here are for dense layers, its "
            "experts would not train; use a dense Qwen3-VL Instruct checkpoint"
        )
    if config.model_type != "qwen3_vl":
        raise ValueError(
            f"model.path {path!r} is of the family {config.model_type!r}: its template, positions and vision tokens "
            "differ; use a Qwen3-VL Instruct checkpoint"
        )
    refuse_thinking(path, None)
    return config


def refuse_thinking(path: str, chat_template: str | None) -> None:
    if "thinking" in Path(path).name.lower() or "<think>" in (chat_template or ""):
        raise ValueError(
            f"model.path {path!r} is a Thinking checkpoint: its template drops the thoughts of earlier turns, so "
            "training and inference prompts would differ; use the Instruct checkpoint"
        )


def build_model(
    model_cfg: ModelConfig, device: torch.device | str | None = None, weights_dir: Path | None = None
) -> nn.Module:
    """The model that `model_cfg` asks for, in eval mode; with `weights_dir`, as `save_weights` left it.

    On `device`, None: a GPU if there is one; all that depends on a device (autocast, attention) is bound to that one.
    """
    device = torch.device(device_type(None) if device is None else device)
    model_cfg = choose(model_cfg, device).model
    model = load_base(model_cfg, device, weights_dir)
    if model_cfg.method != "full":
        model = attach_adapters(model, model_cfg, weights_dir)
    set_trainable(model, model_cfg)
    bind_targets(base_of(model))
    bind_precision(model, model_cfg, device)
    if model_cfg.gradient_checkpointing:
        base_of(model).activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        # Only the reentrant kind needs embeddings that require a gradient.
        base_of(model).disable_input_require_grads()
    if model_cfg.compile:
        compile_blocks(model, device)
    check_manifest(model, model_cfg)
    return model.eval()


def compile_blocks(model: nn.Module, device) -> None:
    """Each block for itself, in place: all share one compiled program, and names of weights stay as they are."""
    if device_type(device) == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise ValueError(
            "model.compile is true and there is no C++ compiler (g++, or what $CXX names): nothing can be compiled; "
            "install one, or use model.compile=false"
        )
    keep_compiled_code_apart()
    for block in base_of(model).model.language_model.layers:
        block.compile(dynamic=True)


def naming_the_weights(load: Callable) -> Callable:
    """`load_base`, with a ValueError that names the model whose files are missing or damaged."""

    @functools.wraps(load)
    def named(model_cfg: ModelConfig, device, weights_dir: Path | None) -> nn.Module:
        try:
            return load(model_cfg, device, weights_dir)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"the weights of model.path {model_cfg.path!r} cannot be read ({error}): there is no model; copy or "
                "download them again"
            ) from None

    return named


@naming_the_weights
def load_base(model_cfg: ModelConfig, device, weights_dir: Path | None) -> nn.Module:
    """Stage 1: weights, in 4 bit for qlora; what will train in full is loaded as float32 masters."""
    from transformers import Qwen3VLForConditionalGeneration

    path = checkpoint_path(model_cfg.path)
    load_model_config(path)
    is_full = model_cfg.method == "full"
    options = {"quantization_config": nf4_config(model_cfg)} if model_cfg.method == "qlora" else {}
    if not loads_slices():  # ZeRO-3 places them itself
        options["device_map"] = {"": device}
    dtype = torch.float32 if is_full else getattr(torch, model_cfg.dtype)
    with slices_loaded_as(dtype):
        model = Qwen3VLForConditionalGeneration.from_pretrained(
            weights_dir if is_full and weights_dir else path,
            dtype=dtype,
            attn_implementation=choose_attention(model_cfg.attention, device),
            **options,
        )
    model.model.visual.patch_embed.proj.__class__ = PatchProjection
    model.lm_head.__class__ = Head
    for module in linear_4bit(model).values():
        # On a CPU with AVX-512 bf16 an evaluation would repack the weights for inference, and every later training
        # step would pass no gradient through them (bitsandbytes 0.50).
        module.support_avx512bf16_for_cpu = False
    return model


def linear_4bit(model: nn.Module) -> dict[str, nn.Module]:
    """The quantised layers by name; an adapter's wrapper of one is not one."""
    bitsandbytes = sys.modules.get("bitsandbytes")  # not imported for a model without such layers: it is slow and loud
    kind = bitsandbytes.nn.Linear4bit if bitsandbytes else ()
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def nf4_config(model_cfg: ModelConfig):
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if model_cfg.autocast else getattr(torch, model_cfg.dtype),
        # The whole prefix: with "visual" alone the tower's blocks come out quantised (transformers 5.23).
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )


def choose_attention(name: str, device) -> str:
    """`auto` by device: on a CPU, eager is faster than sdpa, whose backward dominates at our lengths."""
    if name != "auto":
        return name
    if device_type(device) != "cuda":
        return "eager"
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"


def device_type(device) -> str:
    if device is not None:
        return torch.device(device).type
    return "cuda" if torch.cuda.is_available() else "cpu"


def attach_adapters(model: nn.Module, model_cfg: ModelConfig, weights_dir: Path | None) -> nn.Module:
    """Stage 2: LoRA in `lora_places`, float32; from `weights_dir` if given."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora import LoraLayer

    if weights_dir:
        model = PeftModel.from_pretrained(model, weights_dir, is_trainable=True)
    else:
        lora = LoraConfig(
            r=model_cfg.lora_rank,
            lora_alpha=model_cfg.lora_alpha,
            lora_dropout=model_cfg.lora_dropout,
            target_modules="|".join(adapted_modules(model_cfg)),
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for pattern in adapted_modules(model_cfg):
        assert any(re.search(f"{pattern}$", name) for name in adapted), f"no layer got an adapter by {pattern}"
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # Under autocast a float32 copy of the input would be made only to be rounded again.
            module.cast_input_dtype_enabled = not model_cfg.autocast
        elif type(module) is nn.Dropout:
            module.__class__ = Dropout
    return model


def adapted_modules(model_cfg: ModelConfig) -> list[str]:
    """Patterns of the full names of the linear layers that get an adapter, each of which finds some."""
    patterns = {
        "language": [rf"model\.language_model\.layers\.\d+\.\w+\.{name}" for name in model_cfg.lora_targets],
        "merger": [r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]"],
        "vision": [r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])"],
    }
    return [pattern for place in model_cfg.lora_places for pattern in patterns[place]]


def set_trainable(model: nn.Module, model_cfg: ModelConfig) -> None:
    """Stage 3: requires_grad by name; frozen parts of a float32 model go to `model.dtype`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(should_train(name, model_cfg))
    if model_cfg.method == "full" and not model_cfg.train_vision:
        # Weights alone: the tower's rotary frequencies are float32 in every dtype.
        for parameter in base_of(model).model.visual.parameters():
            convert(parameter, getattr(torch, model_cfg.dtype))


def should_train(name: str, model_cfg: ModelConfig) -> bool:
    if model_cfg.method != "full":
        return ".lora_" in name
    return model_cfg.train_vision or not is_vision(name)


def is_vision(name: str) -> bool:
    return "model.visual." in name


def bind_precision(model: nn.Module, model_cfg: ModelConfig, device) -> None:
    """Run a frozen vision tower without autograd and, if asked, the whole forward under bfloat16 autocast.

    With adapters in the mergers alone the tower's blocks keep no graph either: nothing before the mergers trains.
    """
    base = base_of(model)
    if not model_cfg.vision_has_gradient:
        base.model.visual.forward = torch.no_grad()(base.model.visual.forward)
    base.computes_in_bfloat16, base.precision = model_cfg.autocast, model_cfg.precision
    if model_cfg.autocast:
        # Uncached: autocast would hold a bfloat16 copy of every trained weight until the forward ends, 13 GiB for 8B.
        base.forward = torch.autocast(device_type(device), torch.bfloat16, cache_enabled=False)(base.forward)


def bind_targets(base: nn.Module) -> None:
    """The forward takes `targets` (N,), which make the head answer with losses, through all that wraps the model."""
    stock = type(base).forward

    @functools.wraps(stock)
    def forward(self, *args, targets: torch.Tensor | None = None, **kwargs):
        self.lm_head.targets = targets
        return stock(self, *args, **kwargs)

    base.forward = types.MethodType(forward, base)


def base_of(model: nn.Module) -> nn.Module:
    """The transformers model inside adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def manifest(model: nn.Module) -> list[dict]:
    """Name, whole shape, dtype and trainable of every parameter; a 4-bit weight has its packed shape."""
    return [
        {
            "name": name,
            "shape": list(whole_shape(parameter)),
            "dtype": str(held(parameter).dtype).removeprefix("torch."),
            "trainable": parameter.requires_grad,
        }
        for name, parameter in model.named_parameters()
    ]


def check_manifest(model: nn.Module, model_cfg: ModelConfig) -> None:
    """Assert that the trainable parameters are those asked for, as float32 masters, and the frozen kept their dtype."""
    packed = linear_4bit(model)
    in_tower = [name for name in packed if is_vision(name)]
    assert not in_tower, f"4-bit layers in the vision tower: {in_tower[:3]}"
    assert bool(packed) == (model_cfg.method == "qlora"), f"method {model_cfg.method}, {len(packed)} 4-bit layers"
    entries = manifest(model)
    assert any(entry["trainable"] for entry in entries), "nothing is trainable"
    packed_weights = {f"{name}.weight" for name in packed}
    for entry in entries:
        assert entry["trainable"] == should_train(entry["name"], model_cfg), f"trainable is wrong: {entry}"
        dtype = "float32" if entry["trainable"] else model_cfg.dtype
        assert entry["dtype"] == dtype or entry["name"] in packed_weights, f"dtype is not {dtype}: {entry}"


def describe_parameters(model: nn.Module) -> str:
    """Trainable and total parameters by part, one line; 4-bit weights count as unpacked."""
    totals: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = "vision" if is_vision(name) else "adapters" if ".lora_" in name else "language"
        # What is packed in 4 bit has its true shape elsewhere.
        shape = getattr(getattr(parameter, "quant_state", parameter), "shape", whole_shape(parameter))
        trainable, total = totals.setdefault(part, [0, 0])
        totals[part] = [trainable + math.prod(shape) * parameter.requires_grad, total + math.prod(shape)]
    return ", ".join(f"{part} {trainable:,} of {total:,}" for part, (trainable, total) in totals.items())


def save_weights(model: nn.Module, directory: Path, state_dict: dict | None = None) -> None:
    """The adapter, or for full the whole model, as safetensors; `build_model(weights_dir=...)` reads it back."""
    # Names as in the model: reverting to a "legacy" form writes wrong ones after a load under ZeRO-3 (transformers 5.23).
    options = {"save_embedding_layers": False} if hasattr(model, "get_base_model") else {"save_original_format": False}
    model.save_pretrained(directory, state_dict=state_dict, **options)


def build_for_evaluation(trained: ModelConfig, precision: Precision, device, weights_dir: Path | None) -> nn.Module:
    """A trained model that computes in `precision`: its weights are loaded as for the training, then widened.

    So that not one number of them depends on where it is evaluated, whatever the base's own type; not in 4 bit either.
    """
    chosen = precision.model
    model = build_model(replace(trained, autocast=chosen.autocast), device, weights_dir)
    if chosen.precision == "float32":
        for module in linear_4bit(model).values():
            module.compute_dtype = torch.float32
        model.float()
    base_of(model).precision = chosen.precision
    return model


def build_tiny_config(
    tokenizer,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    vision_hidden_size: int,
    vision_depth: int,
    num_kv_heads: int = 2,
    merge_size: int = 2,
    max_grid: int = 32,
):
    """Config of a small Qwen3-VL for `tokenizer`: `build_tiny_config(tokenizer, **PRESETS["tiny"])`.

    `max_grid` is the side of the learned grid of vision positions, in patches.
    """
    from transformers import Qwen3VLConfig

    head_dim = hidden_size // num_heads
    section = head_dim // 2 * 20 // 64  # the published 24:20:20 of 64
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    return Qwen3VLConfig(
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
        text_config={
            "vocab_size": math.ceil(len(tokenizer) / 64) * 64,
            "hidden_size": hidden_size,
            "intermediate_size": hidden_size * 3,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": 32768,
            # No pad_token_id: under ZeRO-3 its row would be initialised in an empty shard.
            "eos_token_id": tokenizer.eos_token_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_interleaved": True,
                "mrope_section": [head_dim // 2 - 2 * section, section, section],
            },
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": vision_hidden_size,
            "intermediate_size": vision_hidden_size * 4,
            "num_heads": max(1, vision_hidden_size // 32),
            "out_hidden_size": hidden_size,
            "patch_size": 16,
            "spatial_merge_size": merge_size,
            "temporal_patch_size": 2,
            "num_position_embeddings": max_grid**2,
            "deepstack_visual_indexes": [0],
        },
    )


def build_tiny_tokenizer(
    texts: Iterable[str], vocab_size: int, chat_template: str | None = None, pre_tokens: str | None = None
):
    """A byte-level BPE tokenizer trained on `texts`, with Qwen3-VL's added tokens.

    `pre_tokens` is a regular expression of what no merge crosses; None: Qwen3-VL's own.
    """
    from tokenizers import AddedToken, Regex, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    backend = Qwen2Tokenizer(vocab={}, merges=[]).backend_tokenizer
    if pre_tokens:
        split = pre_tokenizers.Split(Regex(pre_tokens), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    layout = json.loads(backend.to_str())
    vocab = {token: i for token, i in layout["model"]["vocab"].items() if token not in ADDED_TOKENS}
    layout["model"]["vocab"] = {token: i for i, token in enumerate(vocab)}
    layout["added_tokens"] = []
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=type(backend).from_str(json.dumps(layout)))
    tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t, special in ADDED_TOKENS.items()])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.chat_template = chat_template
    return tokenizer


def save_tiny(directory: Path, tokenizer, model: nn.Module) -> None:
    """Model, tokenizer and image processor as a folder that `from_pretrained` reads like a published one."""
    from transformers import GenerationConfig, Qwen2VLImageProcessor

    vision = model.config.vision_config
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    Qwen2VLImageProcessor(
        size={"shortest_edge": 65536, "longest_edge": 16777216},
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(directory)


def build_tiny_model(tokenizer, preset: str, seed: int = 0, **sizes) -> nn.Module:
    """A randomly initialised member of the tiny family, float32."""
    from transformers import Qwen3VLForConditionalGeneration

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3VLForConditionalGeneration(build_tiny_config(tokenizer, **(PRESETS[preset] | sizes)))
