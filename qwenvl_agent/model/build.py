"""Models and processors from a config: `build_model` loads, attaches adapters, and says what trains.

One decision: a model computes in the same precision wherever it is called, because `build_model` binds autocast (and
no_grad for a frozen vision tower) to the forward functions themselves. Training, held-out loss and generation cannot
differ by a context that somebody forgot.
"""

import functools
import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from qwenvl_agent.config import SHIPPED_BASES, ModelConfig, VisionConfig
from qwenvl_agent.data.processor import ImageProcessor, Tokenizer
from qwenvl_agent.families import FAMILIES, Family, find_family
from qwenvl_agent.families.family import ModulePaths
from qwenvl_agent.model.adapters import attach_adapters
from qwenvl_agent.model.attention import pack_inputs
from qwenvl_agent.model.compiler import check_compiler
from qwenvl_agent.model.experts import pack_experts, widen_experts
from qwenvl_agent.model.kernels import Head, PatchProjection, keep_compiled_code_apart
from qwenvl_agent.model.precision import Precision, choose
from qwenvl_agent.model.shards import convert, held, loads_slices, slices_loaded_as, whole_shape
from qwenvl_agent.requirements import check_installed
from qwenvl_agent.vision import Geometry, num_image_tokens

ASSETS_DIR = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class Processor:
    """What turns rows into tensors; `geometry` is what the image processor was verified to do."""

    tokenizer: Tokenizer
    image_processor: ImageProcessor
    geometry: Geometry
    name: str
    family: Family
    only_thinks: bool = False
    """Whether the checkpoint begins every answer in a think block."""

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))


def build_processor(model_cfg: ModelConfig, vision_cfg: VisionConfig) -> Processor:
    """Tokenizer and image processor with the vision budget set, and proved by probe pictures."""
    from transformers import AutoImageProcessor, AutoTokenizer

    path = checkpoint_path(model_cfg.path)
    config = load_model_config(path)
    family = FAMILIES[config.model_type]
    arch = family.read_architecture(config.to_dict())
    token_px = arch.patch * arch.merge
    geometry = Geometry(
        patch_size=arch.patch,
        merge_size=arch.merge,
        min_pixels=vision_cfg.min_tokens_per_image * token_px**2,
        max_pixels=vision_cfg.max_tokens_per_image * token_px**2,
    )
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    # `min_pixels` and `max_pixels` would be accepted and ignored here: only `size` sets the budget.
    size = {"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels}
    image_processor = AutoImageProcessor.from_pretrained(path, size=size, trust_remote_code=False)
    check_probe_pictures(image_processor, geometry)
    only_thinks = family.only_thinks(path, tokenizer.chat_template)
    return Processor(tokenizer, image_processor, geometry, model_cfg.path, family, only_thinks)


def check_probe_pictures(image_processor: ImageProcessor, geometry: Geometry) -> None:
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


def one_line(error: Exception) -> str:
    """transformers explains a missing network in several."""
    return " ".join(str(error).split())


def load_model_config(path: str):
    """The checkpoint's config; ValueError, before any weight is read, for what no family here is for."""
    from transformers import AutoConfig

    check_installed()
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path {path!r} cannot be read ({one_line(error)}); give a hub id or a local folder"
        ) from None
    find_family(config.model_type, f"model.path {path!r}")
    return config


def family_of(model: nn.Module) -> Family:
    return FAMILIES[base_of(model).config.model_type]


def build_model(
    model_cfg: ModelConfig, device: torch.device | str | None = None, weights_dir: Path | None = None
) -> nn.Module:
    """The model that `model_cfg` asks for, in eval mode; with `weights_dir`, as `save_weights` left it.

    On `device`, None: a GPU if there is one; all that depends on a device (autocast, attention) is bound to that one.
    """
    place = torch.device(device_type(None) if device is None else device)
    model_cfg = choose(model_cfg, place).model
    # Under ZeRO-3 some classes draw numbers as they are built: adapters would begin otherwise than in one process.
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        model = load_base(model_cfg, place, weights_dir)
    if model_cfg.method != "full":
        model = attach_adapters(model, model_cfg, family_of(model).paths, weights_dir)
    set_trainable(model, model_cfg)
    bind_targets(base_of(model))
    family_of(model).bind_pictures(base_of(model))
    bind_precision(model, model_cfg, place)
    if model_cfg.gradient_checkpointing:
        checkpoint_layers(model, model_cfg)
    if model_cfg.compile:
        compile_blocks(model, place)
    check_manifest(model, model_cfg)
    return model.eval()


def checkpoint_layers(model: nn.Module, model_cfg: ModelConfig) -> None:
    """The first layers are computed again in backward: what the last ones keep is free by then."""
    base = base_of(model)
    base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    # Only the reentrant kind needs embeddings that require a gradient.
    base.disable_input_require_grads()
    layers = base.get_submodule(family_of(model).paths.layers)
    for layer in layers[model_cfg.recomputed(len(layers)) :]:
        layer.gradient_checkpointing = False


def compile_blocks(model: nn.Module, device, backend: str | Callable = "inductor") -> None:
    """Each block for itself, in place: names of weights stay as they are, and all blocks of a kind share one program.

    (A kind: computed again in backward or not; the first block, whose input has no gradient where embeddings are frozen.)
    """
    check_compiler("model.compile is true", device_type(device), "model.compile=false")
    keep_compiled_code_apart()
    for block in base_of(model).get_submodule(family_of(model).paths.layers):
        block.compile(dynamic=True, backend=backend)


def naming_the_weights(load: Callable) -> Callable:
    """`load_base`, with a ValueError that names the model whose files are missing or damaged."""

    @functools.wraps(load)
    def named(model_cfg: ModelConfig, device, weights_dir: Path | None) -> nn.Module:
        try:
            return load(model_cfg, device, weights_dir)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"the weights of model.path {model_cfg.path!r} cannot be read ({one_line(error)}): there is no model; "
                "copy or download them again"
            ) from None

    return named


@naming_the_weights
def load_base(model_cfg: ModelConfig, device, weights_dir: Path | None) -> nn.Module:
    """Weights, in 4 bit for qlora; what will train in full is loaded as float32 masters."""
    path = checkpoint_path(model_cfg.path)
    family = FAMILIES[load_model_config(path).model_type]
    refuse_pickles(Path(path))
    model_cfg.check_places(bool(family.paths.fused_experts))
    model_cfg.targets_among(family.paths.projections)
    is_full = model_cfg.method == "full"
    options = {"quantization_config": nf4_config(model_cfg, family.paths)} if model_cfg.method == "qlora" else {}
    if not loads_slices():  # ZeRO-3 places them itself
        options["device_map"] = {"": device}
    dtype = torch.float32 if is_full else getattr(torch, model_cfg.dtype)
    with slices_loaded_as(dtype):
        model = family.load_class("model").from_pretrained(
            weights_dir if is_full and weights_dir else path,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=choose_attention(model_cfg, device),
            **options,
        )
    model.get_submodule(family.paths.patch_projection).__class__ = PatchProjection
    model.get_submodule(family.paths.head).__class__ = Head
    if model_cfg.method == "qlora":
        pack_experts(model, family.paths)
    for module in linear_4bit(model).values():
        # On a CPU with AVX-512 bf16 an evaluation would repack the weights for inference, and every later training
        # step would pass no gradient through them (bitsandbytes 0.50).
        module.support_avx512bf16_for_cpu = False
    return model


def refuse_pickles(folder: Path) -> None:
    """ValueError for a local checkpoint whose weights are in no safetensors; a hub's is refused by transformers."""
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise ValueError(
            f"model.path {str(folder)!r} has no *.safetensors, and its *.bin are pickles, which may run any code: they are not "
            "opened; where you trust them, load and save the model once with transformers (save_pretrained)"
        )


def linear_4bit(model: nn.Module) -> dict[str, nn.Module]:
    """The quantised layers by name; an adapter's wrapper of one is not one."""
    bitsandbytes = sys.modules.get("bitsandbytes")  # not imported for a model without such layers: it is slow and loud
    kind = bitsandbytes.nn.Linear4bit if bitsandbytes else ()
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def nf4_config(model_cfg: ModelConfig, paths: ModulePaths):
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if model_cfg.autocast else getattr(torch, model_cfg.dtype),
        # The whole prefix: with its last name alone the tower's blocks come out quantised (transformers 5.23).
        llm_int8_skip_modules=[paths.vision, paths.head],
    )


def choose_attention(model_cfg: ModelConfig, device) -> str:
    """`auto` by device: on a CPU, eager is faster than sdpa, whose backward dominates at our lengths; ValueError for what
    could not take its first step."""
    is_cuda = device_type(device) == "cuda"
    if model_cfg.attention == "flash_attention_2" and is_cuda and model_cfg.precision.startswith("float32"):
        raise ValueError(
            "model.attention is flash_attention_2 in float32: its kernels are of half precision, and the first step would "
            "fail; set model.autocast=true, or model.attention=sdpa"
        )
    if model_cfg.attention != "auto":
        return model_cfg.attention
    return "sdpa" if is_cuda else "eager"


def device_type(device) -> str:
    if device is not None:
        return torch.device(device).type
    return "cuda" if torch.cuda.is_available() else "cpu"


def set_trainable(model: nn.Module, model_cfg: ModelConfig) -> None:
    """requires_grad by name; frozen parts of a float32 model go to `model.dtype`."""
    paths = family_of(model).paths
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(should_train(name, model_cfg, paths))
    if model_cfg.method == "full" and not model_cfg.train_vision:
        # Weights alone: the tower's rotary frequencies are float32 in every dtype.
        for parameter in base_of(model).get_submodule(paths.vision).parameters():
            convert(parameter, getattr(torch, model_cfg.dtype))


def should_train(name: str, model_cfg: ModelConfig, paths: ModulePaths) -> bool:
    if model_cfg.method != "full":
        return ".lora_" in name
    return paths.may_train(name) and (model_cfg.train_vision or not paths.is_vision(name))


def bind_precision(model: nn.Module, model_cfg: ModelConfig, device) -> None:
    """Run a frozen vision tower without autograd and, if asked, the whole forward under bfloat16 autocast.

    With adapters in the mergers alone the tower's blocks keep no graph either: nothing before the mergers trains.
    """
    base = base_of(model)
    if not model_cfg.vision_has_gradient:
        tower = base.get_submodule(family_of(model).paths.vision)
        tower.forward = torch.no_grad()(tower.forward)
    base.computes_in_bfloat16, base.precision = model_cfg.autocast, model_cfg.precision
    if model_cfg.autocast:
        # Uncached: autocast would hold a bfloat16 copy of every trained weight until the forward ends, 13 GiB for 8B.
        base.forward = torch.autocast(device_type(device), torch.bfloat16, cache_enabled=False)(base.forward)


def bind_targets(base: nn.Module) -> None:
    """The forward takes `targets` (N,) at `places` (N,) of B * T, which make the head answer with losses, and of packs
    `segments` (B, T) and `pack_sizes`, through all that wraps the model."""
    stock, head = type(base).forward, family_of(base).paths.head

    @functools.wraps(stock)
    def forward(
        self,
        *args,
        targets: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
        segments: torch.Tensor | None = None,
        **kwargs,
    ):
        module = self.get_submodule(head)
        module.targets, module.places = targets, places
        if segments is not None:
            attention = self.config.get_text_config()._attn_implementation
            kwargs |= pack_inputs(segments, kwargs.pop("pack_sizes"), attention)
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
    packed, paths = linear_4bit(model), family_of(model).paths
    in_tower = [name for name in packed if paths.is_vision(name)]
    assert not in_tower, f"4-bit layers in the vision tower: {in_tower[:3]}"
    assert bool(packed) == (model_cfg.method == "qlora"), f"method {model_cfg.method}, {len(packed)} 4-bit layers"
    entries = manifest(model)
    assert any(entry["trainable"] for entry in entries), "nothing is trainable"
    packed_weights = {f"{name}.weight" for name in packed}
    packed_weights |= {name for name, parameter in model.named_parameters() if hasattr(parameter, "quant_state")}
    for entry in entries:
        assert entry["trainable"] == should_train(entry["name"], model_cfg, paths), f"trainable is wrong: {entry}"
        is_master = entry["trainable"] or (model_cfg.method == "full" and not paths.is_vision(entry["name"]))
        dtype = "float32" if is_master else model_cfg.dtype
        assert entry["dtype"] == dtype or entry["name"] in packed_weights, f"dtype is not {dtype}: {entry}"


def describe_parameters(model: nn.Module) -> str:
    """Trainable and total parameters by part, one line; 4-bit weights count as unpacked. And what the family adds."""
    totals: dict[str, list[int]] = {}
    family = family_of(model)
    paths = family.paths
    for name, parameter in model.named_parameters():
        is_language = "experts" if paths.is_expert(name) else "language"
        part = "vision" if paths.is_vision(name) else "adapters" if ".lora_" in name else is_language
        # What is packed in 4 bit has its true shape elsewhere.
        shape = getattr(getattr(parameter, "quant_state", parameter), "shape", whole_shape(parameter))
        trainable, total = totals.setdefault(part, [0, 0])
        totals[part] = [trainable + math.prod(shape) * parameter.requires_grad, total + math.prod(shape)]
    counts = [f"{part} {trainable:,} of {total:,}" for part, (trainable, total) in totals.items()]
    return ", ".join(counts) + (f"; {family.remark}" if family.remark else "")


def save_weights(model: nn.Module, directory: Path, state_dict: dict | None = None) -> None:
    """The adapter, or for full the whole model, as safetensors; `build_model(weights_dir=...)` reads it back."""
    if hasattr(model, "get_base_model"):
        model.save_pretrained(directory, state_dict=state_dict, save_embedding_layers=False)
        return
    # Names as in the model: reverting to a "legacy" form writes wrong ones after a load under ZeRO-3 (transformers 5.23).
    # Weights as they are published: under ZeRO-3 it takes them for that, whatever their shape.
    stored, weights = family_of(model).stored, state_dict or model.state_dict()
    weights = {name: stored(name, weight) for name, weight in weights.items()}
    model.save_pretrained(directory, state_dict=weights, save_original_format=False)


def build_for_evaluation(trained: ModelConfig, precision: Precision, device, weights_dir: Path | None) -> nn.Module:
    """A trained model that computes in `precision`: its weights are loaded as for the training, then widened.

    So that not one number of them depends on where it is evaluated, whatever the base's own type; not in 4 bit either.
    """
    chosen = precision.model
    model = build_model(replace(trained, autocast=chosen.autocast), device, weights_dir)
    if chosen.precision == "float32":
        for module in linear_4bit(model).values():
            module.compute_dtype = torch.float32
        widen_experts(model, family_of(model).paths)
        model.float()
    base_of(model).precision = chosen.precision
    return model
