"""Peak GPU memory of a training run as arithmetic: does a config fit a card, and if not, what would make it fit. No torch.

The formulas follow what one optimizer step of train.py really keeps: float32 masters of what trains, frozen parts in
`model.dtype`, bfloat16 autocast, a frozen vision tower without autograd, logits at supervised positions only. A step has
a few moments that can be its peak (`MOMENTS`); each is a sum over the same categories, and the plan is the largest.
tests/test_vram.py holds the sums against a step traced under fake tensors.

    qwenvl-agent plan --config configs/safari_2b.json --gpu-gb 24

Legend of the formulas: bytes a token; h hidden size, q and kv width of the query and key heads, f intermediate size.
What no trace shows (the CUDA context, fragmentation) is the category `slack`, an assumption: see SLACK_SHARE.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from qwenvl_agent.config import (
    LORA_PLACES,
    SHIPPED_BASES,
    Config,
    ModelConfig,
    VisionConfig,
    build_config,
    to_json,
)
from qwenvl_agent.families import FAMILIES, Architecture, find_family, published_architectures
from qwenvl_agent.files import read_json
from qwenvl_agent.formats import formats_of
from qwenvl_agent.model.logits import head_rows
from qwenvl_agent.prompt import as_asked, render_row
from qwenvl_agent.schema import Picture, Row
from qwenvl_agent.settings import apply_override
from qwenvl_agent.vision import Geometry, picture_tokens, reduce_request

GIB = 2**30

CATEGORIES = (
    "weights",
    "quantisation",
    "adapters",
    "gradients",
    "optimizer",
    "zero",
    "inputs",
    "activations",
    "vision",
    "logits",
    "slack",
)
MOMENTS = (
    "vision tower",
    "last layer forward",
    "loss",
    "head backward",
    "layer backward",
    "embedding backward",
    "tower backward",
    "optimizer step",
)

# Assumptions, not measured here: a CUDA context with cuBLAS workspaces, NCCL's buffers with more than one GPU, and the
# caching allocator's share of what comes and goes.
CONTEXT_BYTES = 0.6 * GIB
NCCL_BYTES = 0.4 * GIB
SLACK_SHARE = 0.06

REDUCE_BUCKET = 50_000_000
"""Elements of the buffer in which ZeRO sums gradients, held whole: training/zero.py sets it. DeepSpeed's default is ten
times as much, 1.9 GiB for adapters of 44 million."""
# DeepSpeed 0.19's defaults, in elements.
MAX_LIVE_PARAMETERS = 1_000_000_000
SUB_GROUP = 1_000_000_000

# bitsandbytes NF4 with double quantisation: blocks of 64 weights with one byte each, blocks of 256 such bytes with one
# float32 each, and two code books with an offset.
NF4_BLOCK, NF4_NESTED_BLOCK, NF4_CODE_BYTES = 64, 256, (16 + 256 + 1) * 4

# bitsandbytes' 8-bit AdamW: blocks of 256 numbers with one float32 each; smaller parameters stay in 32 bits.
AVERAGES_BLOCK, AVERAGES_SMALLEST = 256, 4096

CHARS_PER_TOKEN = 3.0
"""Of text when no tokenizer is at hand, as data/cache_files.py estimates."""
TYPICAL_TEXT = {"prompt": 600, "history_step": 250, "turn": 150}
"""Tokens of a row whose data is not there: system prompt with tools and the observation, one earlier step, the turn."""


# architecture


ARCHITECTURES = published_architectures()


def find_architecture(model_path: str, config_dir: str | Path | None = None) -> Architecture:
    """Of a hub id in the table, a folder with a config.json, or a config's JSON file; `config_dir` goes before."""
    path = Path(config_dir or model_path)
    if config_dir is None and model_path in ARCHITECTURES:
        return ARCHITECTURES[model_path]
    if config_dir is None and model_path in SHIPPED_BASES:
        path = Path(__file__).parents[1] / "assets" / model_path
    file = path / "config.json" if path.is_dir() else path
    try:
        values = read_json(file)
    except OSError:
        raise ValueError(
            f"model {str(path)!r} is no folder with a config.json and not in the table "
            f"({', '.join(ARCHITECTURES)}): its sizes are unknown; give its config's folder with --model-config"
        ) from None
    try:
        return read_architecture(values, f"model {str(file)!r}")
    except KeyError as error:
        raise ValueError(
            f"{file} is not a model's config ({type(error).__name__}: {error}): its sizes are unknown; give the "
            f"config.json of a {' or '.join(family.title for family in FAMILIES.values())} checkpoint"
        ) from None


def read_architecture(values: dict, source: str = "the model") -> Architecture:
    """From a config.json's values; KeyError names what is missing, ValueError a family that is not known here."""
    return find_family(values["model_type"], source).read_architecture(values)


# rows


@dataclass(frozen=True)
class RowShape:
    """Tokens of one training row; a micro-batch is planned as `batch_size` such rows."""

    tokens: int
    """All of them, vision tokens included."""
    image_tokens: int
    supervised: int
    num_images: int = 1
    source: str = ""
    """Where the numbers come from, for people."""


def geometry_of(arch: Architecture, vision: VisionConfig) -> Geometry:
    area = (arch.patch * arch.merge) ** 2
    return Geometry(arch.patch, arch.merge, vision.min_tokens_per_image * area, vision.max_tokens_per_image * area)


def budget_row(config: Config, arch: Architecture) -> RowShape:
    """The row that the config's budget allows at most, with typical text: for a plan before there is data."""
    vision, steps = config.vision, config.prompt.history_steps
    side = arch.patch * arch.merge
    # A picture large enough to fill the budget; a board of tiles is square and takes the fewest whole tiles.
    a_picture = picture_tokens(Picture(256 * side, 256 * side), vision, geometry_of(arch, vision))
    num_images = max(1, min(1 + steps, vision.max_tokens_per_row // a_picture))
    turn = TYPICAL_TEXT["turn"]
    text = TYPICAL_TEXT["prompt"] + steps * TYPICAL_TEXT["history_step"] + turn
    supervised = turn * (1 + steps) if config.prompt.supervise_history else turn
    return RowShape(
        tokens=min(vision.max_row_tokens, num_images * a_picture + text),
        image_tokens=num_images * a_picture,
        supervised=supervised,
        num_images=num_images,
        source=f"budget of the config: {num_images} x {a_picture} vision tokens, {text} tokens of typical text",
    )


def by_characters(text: str) -> float:
    """Tokens of a text when no tokenizer is at hand."""
    return len(text) / CHARS_PER_TOKEN


def measure_row(
    row: Row, config: Config, arch: Architecture, count_tokens: Callable[[str], float] = by_characters
) -> RowShape:
    """Of one row of data: vision tokens exact, text tokens as `count_tokens` counts them."""
    geometry = geometry_of(arch, config.vision)
    asked = as_asked(row.request, config.prompt.ask_for_thought)
    request, _ = reduce_request(asked, config.vision, geometry)
    fmt = formats_of(FAMILIES[arch.model_type])[config.prompt.format]
    rendered = render_row(request, row.turn, fmt, config.prompt.supervise_history)
    pictures = [picture_tokens(picture, config.vision, geometry) for picture in rendered.pictures]
    image_pad = fmt.family.template.image_pad
    text = math.ceil(count_tokens("".join(span.text for span in rendered.spans).replace(image_pad, "")))
    supervised = math.ceil(count_tokens("".join(span.text for span in rendered.spans if span.part != "prompt")))
    tokens = min(sum(pictures) + text, config.vision.max_row_tokens)
    return RowShape(tokens, sum(pictures), supervised, len(pictures))


class RowsByIndex(Protocol):
    def __getitem__(self, index: int, /) -> Row: ...


def data_row(
    rows: RowsByIndex,
    lengths: Sequence[float] | np.ndarray,
    config: Config,
    arch: Architecture,
    count_tokens: Callable[[str], float] = by_characters,
) -> RowShape:
    """The largest row of a dataset, as if all rows of a micro-batch were like it.

    `lengths` orders the rows (RowDataset.lengths); the 64 longest are measured, and one row at each percentile tells
    how usual that is.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()

    def measure(place: int) -> RowShape:
        return measure_row(rows[order[place]], config, arch, count_tokens)

    shapes = [measure(place) for place in range(min(64, len(order)))]
    image_tokens, supervised = max(s.image_tokens for s in shapes), max(s.supervised for s in shapes)
    usual = [f"p{percent} {measure((len(order) - 1) * (100 - percent) // 100).tokens}" for percent in (50, 90, 99)]
    counted = "characters" if count_tokens is by_characters else "the tokenizer"
    return RowShape(
        tokens=max(image_tokens + supervised, *(s.tokens for s in shapes)),
        image_tokens=image_tokens,
        supervised=supervised,
        num_images=max(s.num_images for s in shapes),
        source=f"longest of {len(lengths)} rows ({', '.join(usual)} tokens), vision exact, text by {counted}",
    )


# bytes


@dataclass(frozen=True)
class Precision:
    """Bytes of one number."""

    frozen: int
    compute: int
    stream: int
    """The residual stream: what the embedding gives."""
    normed: int
    """What a norm gives: its weight's type if that is wider."""
    trains_all: bool

    @classmethod
    def of(cls, cfg: ModelConfig) -> "Precision":
        frozen = 2 if cfg.dtype == "bfloat16" else 4
        trains_all = cfg.method == "full"
        stream = 4 if trains_all else frozen
        return cls(frozen, 2 if cfg.autocast else stream, stream, stream, trains_all)


@dataclass(frozen=True)
class Plan:
    """Bytes on one GPU at the moment of the peak, by category; `host_bytes` are in the machine's memory, a rank."""

    parts: dict[str, int]
    moment: str
    moments: dict[str, int]
    host_bytes: int
    row: RowShape
    num_gpus: int
    steady: dict[str, int] = field(default_factory=dict)
    """What stays between steps, by category."""
    loading_bytes: int = 0
    """On the GPU before the first step, where that can be more."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def tensor_bytes(self) -> int:
        """Without the slack that is no tensor: what a trace counts."""
        return self.total - self.parts["slack"]

    def fits(self, gpu_gb: float) -> bool:
        """On a card sold as `gpu_gb`, of which the driver leaves about 2 %."""
        return max(self.total, self.loading_bytes) <= 0.98 * gpu_gb * GIB


def plan_memory(config: Config, arch: Architecture, row: RowShape, num_gpus: int = 1) -> Plan:
    """The peak of one training step on one of `num_gpus` GPUs, with the rows as long as `row`."""
    check_shape(config, row, num_gpus)
    config = replace(config, model=planned_precision(config.model))
    persistent, zero, host = _persistent(config, arch, num_gpus)
    persistent["inputs"] = _input_bytes(config, arch, row)
    temporary = _temporary(config, arch, row)
    moments = {}
    for name in MOMENTS:
        parts = dict.fromkeys(CATEGORIES, 0) | persistent
        parts["zero"] = zero[name]
        for category, size in temporary[name].items():
            parts[category] += int(size)
        coming_and_going = sum(parts[c] for c in ("activations", "vision", "logits", "zero"))
        nccl = NCCL_BYTES if num_gpus > 1 else 0
        parts["slack"] = int(CONTEXT_BYTES + nccl + SLACK_SHARE * coming_and_going)
        moments[name] = parts
    totals = {name: sum(parts.values()) for name, parts in moments.items()}
    moment = max(totals, key=totals.get)
    loading = _loading_bytes(config.model, arch)
    return Plan(moments[moment], moment, totals, int(host), row, num_gpus, persistent, loading)


def _loading_bytes(cfg: ModelConfig, arch: Architecture) -> int:
    """Before experts are packed, one after the other: all of them are there as they are stored. 0 for other models."""
    if cfg.method != "qlora" or not arch.experts:
        return 0
    experts = arch.layers * arch.layer_experts
    return int(CONTEXT_BYTES + weight_bytes(cfg, arch)["weights"] + Precision.of(cfg).frozen * experts - experts // 2)


def check_shape(config: Config, row: RowShape, num_gpus: int) -> None:
    if num_gpus < 1:
        raise ValueError(f"{num_gpus} GPUs: nothing could run; give 1 or more")
    if row.image_tokens + row.supervised > row.tokens:
        raise ValueError(
            f"a row of {row.tokens} tokens cannot hold {row.image_tokens} vision and {row.supervised} supervised "
            "tokens: the plan would be of no row that exists; raise the row's tokens"
        )
    if config.train.zero_stage == 3 and config.model.method == "qlora":
        raise AssertionError("Config refuses QLoRA with ZeRO-3")


def adapter_parameters(cfg: ModelConfig, arch: Architecture) -> int:
    """Of all places; 0 for full."""
    return sum(adapters_by_place(cfg, arch).values())


def adapters_by_place(cfg: ModelConfig, arch: Architecture) -> dict[str, int]:
    """Parameters of the adapters of each of LORA_PLACES; 0 where there are none."""
    adapted = adapted_matrices(cfg, arch)
    return {place: cfg.lora_rank * sum(map(sum, adapted[place])) for place in LORA_PLACES}


def adapted_matrices(cfg: ModelConfig, arch: Architecture) -> dict[str, list[tuple[int, int]]]:
    """(inputs, outputs) of the matrices that have an adapter, in each of LORA_PLACES."""
    places = () if cfg.method == "full" else cfg.lora_places
    cfg.check_places(bool(arch.experts))
    adapted = adapted_projections(cfg, arch)
    matrices = {
        "language": [(inputs, outputs) for name, inputs, outputs in arch.all_projections if name in adapted],
        "experts": [*arch.fused.values()] * arch.experts * arch.layers,
        "merger": [*arch.merger_matrices] * arch.num_mergers,
        "vision": [*arch.vision_matrices] * arch.vision_depth,
    }
    return {place: matrices[place] * (place in places) for place in LORA_PLACES}


def adapted_projections(cfg: ModelConfig, arch: Architecture) -> tuple[str, ...]:
    """The linear layers of a language layer that get an adapter."""
    return cfg.targets_among(arch.projection_names)


def trainable_parameters(cfg: ModelConfig, arch: Architecture) -> int:
    if cfg.method != "full":
        return adapter_parameters(cfg, arch)
    return arch.language - arch.layers * arch.router + (arch.vision if cfg.train_vision else 0)


def optimizer_bytes(config: Config, arch: Architecture) -> int:
    """AdamW's two averages of all that trains: float32; or, of matrices, a byte each and a float32 for every block."""
    whole = 8 * trainable_parameters(config.model, arch)
    if config.train.optimizer == "adamw":
        return whole
    sizes = [size for size in trained_matrices(config.model, arch) if size >= AVERAGES_SMALLEST]
    return whole - sum(6 * size - 8 * math.ceil(size / AVERAGES_BLOCK) for size in sizes)


def trained_matrices(cfg: ModelConfig, arch: Architecture) -> list[int]:
    """Numbers in each trained parameter that is no norm, bias or embedding."""
    if cfg.method != "full":
        pairs = [pair for place in adapted_matrices(cfg, arch).values() for pair in place]
        return [cfg.lora_rank * width for pair in pairs for width in pair]
    sizes = [inputs * outputs for _, inputs, outputs in arch.all_projections]
    sizes += [arch.experts * inputs * outputs for inputs, outputs in arch.fused.values()] * arch.layers
    sizes += [arch.convolution] * arch.linear_layers + [arch.embedding] * (not arch.tied)
    if cfg.train_vision:
        tower = [*arch.vision_matrices] * arch.vision_depth + [*arch.merger_matrices] * arch.num_mergers
        sizes += [inputs * outputs for inputs, outputs in tower] + [arch.patch_values * arch.vision_hidden]
    return sizes


def quantisation_bytes(arch: Architecture) -> int:
    """Scales and code books of the NF4 projections and experts."""
    total = 0
    projections = [inputs * outputs for _, inputs, outputs in arch.all_projections]
    experts = [arch.experts * inputs * outputs for inputs, outputs in arch.fused.values()] * arch.layers
    for size in (*projections, *experts):
        blocks = math.ceil(size / NF4_BLOCK)
        total += blocks + 4 * math.ceil(blocks / NF4_NESTED_BLOCK) + NF4_CODE_BYTES
    return total


def weight_bytes(cfg: ModelConfig, arch: Architecture) -> dict[str, int]:
    """Of the whole model, by category; adapters are float32."""
    frozen = 2 if cfg.dtype == "bfloat16" else 4
    if cfg.method == "full":
        tower = 4 if cfg.train_vision else frozen
        return {"weights": 4 * arch.language + tower * arch.vision, "quantisation": 0, "adapters": 0}
    matrices = arch.projection_matrices + arch.layers * arch.layer_experts
    rest = frozen * (arch.language_other + arch.layers * arch.router + arch.vision)
    adapters = 4 * adapter_parameters(cfg, arch)
    if cfg.method == "qlora":
        return {"weights": matrices // 2 + rest, "quantisation": quantisation_bytes(arch), "adapters": adapters}
    return {"weights": frozen * matrices + rest, "quantisation": 0, "adapters": adapters}


def _persistent(config: Config, arch: Architecture, num_gpus: int) -> tuple[dict[str, int], dict[str, int], int]:
    """What stays between micro-batches by category, ZeRO's buffers by moment, bytes in the host's memory."""
    cfg, stage, offload = config.model, config.train.zero_stage, config.train.cpu_offload
    held = weight_bytes(cfg, arch)
    trainable = 4 * trainable_parameters(cfg, arch)
    share = trainable / num_gpus
    held["optimizer"] = int(2 * share) if stage else optimizer_bytes(config, arch)
    held["gradients"] = int(share if stage >= 2 else trainable)
    zero = dict.fromkeys(MOMENTS, 0)
    backward = ("loss", "head backward", "layer backward", "embedding backward")
    host = 0
    if stage == 0:
        if num_gpus > 1:  # DDP's buckets are a second copy of the gradients
            zero = dict.fromkeys(MOMENTS, trainable)
        return held, zero, host
    bucket = 4 * REDUCE_BUCKET
    if stage < 3:
        # The stage keeps float32 copies of its partition, though the masters are float32 already.
        master = share
        step = share if stage == 2 else 2 * share
        for name in MOMENTS:
            zero[name] = (0 if offload else master) + (bucket if name in backward else 0)
        zero["optimizer step"] += 0 if offload else step
        if offload:
            host = master + 2 * share + share + master
            held["optimizer"] = 0
            held["gradients"] = 0 if stage == 2 else trainable
            largest = 4 * max(arch.embedding if cfg.method == "full" else 0, 1)
            zero = {name: size + largest for name, size in zero.items()}
        return held, {name: int(size) for name, size in zero.items()}, host
    # Stage 3: every rank has a slice of every weight; those in use are gathered, at most MAX_LIVE_PARAMETERS of them.
    whole = sum(held[c] for c in ("weights", "quantisation", "adapters"))
    parameters = arch.language + arch.vision + adapter_parameters(cfg, arch)
    live = min(1.0, MAX_LIVE_PARAMETERS / parameters) * whole
    sub_group = min(share, 4 * SUB_GROUP)
    for category in ("weights", "quantisation", "adapters"):
        held[category] = 0 if offload else math.ceil(held[category] / num_gpus)
    if offload:
        host = whole / num_gpus + 4 * share
        held["optimizer"] = held["gradients"] = 0
    for name in MOMENTS:
        zero[name] = int(bucket + (0 if name == "optimizer step" else live) + (0 if offload else sub_group))
    if offload:
        zero["optimizer step"] = int(bucket)
    return held, zero, int(host)


def _input_bytes(config: Config, arch: Architecture, row: RowShape) -> int:
    """All micro-batches of a step are on the GPU from its start: pixels as bytes, nine int64 numbers a token and five
    bytes (its loss weight and part)."""
    patches = row.image_tokens * arch.merge**2
    a_row = patches * arch.patch_values // arch.temporal + (9 * 8 + 5) * row.tokens
    return config.train.accumulation * config.train.batch_size * a_row


def _temporary(config: Config, arch: Architecture, row: RowShape) -> dict[str, dict[str, float]]:
    """What a micro-batch needs beyond what stays, by moment and category."""
    cfg, batch = config.model, config.train.batch_size
    precision = Precision.of(cfg)
    tokens = batch * row.tokens
    beside = cast_weights(cfg, arch) + expert_weights(cfg, arch)
    full, linear = layer_saved(cfg, arch, batch, row.tokens), linear_layer_saved(cfg, arch, batch, row.tokens)
    layer = max(full, linear) + beside
    stream = precision.stream * arch.hidden * tokens  # one hidden state
    kept = (arch.full_layers * full + arch.linear_layers * linear) / arch.layers + beside  # of one layer, on average
    again = cfg.recomputed(arch.layers)
    last_norm = tokens * _norm_saved(arch.hidden, precision.stream, precision)
    saved = again * stream + (arch.layers - again) * kept + last_norm
    if not again:
        saved -= first_layer_unsaved(cfg, arch, tokens)
    # Backward begins with the last layers: what they kept is free when the first one is computed again.
    at_kept = saved if again < arch.layers else 0
    at_recomputed = again * stream + last_norm + layer if again else 0
    patches = batch * row.image_tokens * arch.merge**2
    tower_saved = tower_saved_bytes(cfg, arch, patches)
    supervised = batch * row.supervised
    backward = max(at_kept, at_recomputed) + layer_backward(cfg, arch, tokens)
    moments = {
        "vision tower": {"vision": tower_bytes(cfg, arch, patches)},
        # What a layer's backward needs beside what it saved, its forward needs too.
        "last layer forward": {"activations": saved + layer_backward(cfg, arch, tokens)},
        "loss": {"activations": saved, "logits": loss_bytes(cfg, arch, supervised)},
        "head backward": {
            "activations": saved,
            "logits": head_saved(cfg, arch, supervised),
            "gradients": head_gradient(cfg, arch),
        },
        "layer backward": {"activations": backward, "gradients": waiting_gradient(cfg, arch)},
        "embedding backward": {"activations": stream, "gradients": embedding_gradient(cfg, arch)},
        "tower backward": {"vision": tower_backward(cfg, arch, patches)},
        "optimizer step": {},
    }
    for name in MOMENTS[:-1]:
        moments[name]["vision"] = moments[name].get("vision", 0) + tower_saved
    if cfg.method != "full":  # the last merger comes after the blocks
        moments["vision tower"]["vision"] -= merger_saved(cfg, arch, patches) / arch.num_mergers
    pixels = patches * arch.patch_values
    for name in ("vision tower", "last layer forward", "loss"):
        moments[name]["vision"] += 4 * pixels  # made of the bytes for this micro-batch's forward
    if tower_dtype_bytes(cfg) < 4:
        moments["vision tower"]["vision"] += tower_dtype_bytes(cfg) * pixels
    return moments


def layer_saved(cfg: ModelConfig, arch: Architecture, batch: int, length: int) -> float:
    """What autograd keeps of one language layer with full attention, without weights; see the legend."""
    p, tokens = Precision.of(cfg), batch * length
    heads = _norm_saved(arch.q, p.compute, p) + _norm_saved(arch.kv, p.compute, p)
    heads += 2 * p.compute * arch.q if arch.gated else 0  # the gate, and what it is multiplied with
    shared = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
    a_token = _blocks_saved(cfg, arch, p, arch.projections, shared) + heads
    return tokens * a_token + _attention_saved(cfg, arch, batch, length)


def linear_layer_saved(cfg: ModelConfig, arch: Architecture, batch: int, length: int) -> float:
    """Of one with linear attention, by torch's own code, which works in float32; 0 if there is none."""
    if not arch.linear_layers:
        return 0
    p = Precision.of(cfg)
    tokens = batch * math.ceil(length / LINEAR_CHUNK) * LINEAR_CHUNK
    shared = (("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"), ("gate_proj", "up_proj"))
    projected = 2 * arch.linear_keys + arch.linear_values
    convolution = 3 * p.compute * projected
    values = arch.linear_values  # keys are repeated for every head of values
    a_token = LINEAR_SAVED * 4 * values + LINEAR_SQUARES * 4 * arch.linear_heads * LINEAR_CHUNK
    a_token += 4 * values * (arch.linear_values // arch.linear_heads) // LINEAR_CHUNK  # a state for each chunk
    return tokens * (_blocks_saved(cfg, arch, p, arch.linear_projections, shared) + convolution + a_token)


LINEAR_CHUNK = 64
LINEAR_SAVED = 19
"""Arrays as wide as the values that linear attention keeps of a token."""
LINEAR_SQUARES = 4
"""And those of a chunk's square, a number for each token of it."""


def _blocks_saved(cfg: ModelConfig, arch: Architecture, p: Precision, projections: dict, shared: Sequence) -> float:
    """Of one token: the norms before attention and MLP, inputs of projections, the MLP or the experts."""
    norms = _norm_saved(arch.hidden, p.stream, p) * 2
    kept = _kept_inputs(cfg, arch)
    linears = sum(_linear_saved(cfg, arch, name, inputs, p) for name, (inputs, _) in projections.items())
    linears += len(arch.fused) and _experts_saved(cfg, arch, p)
    if p.normed == p.compute and not _has_dropout(cfg):
        # The consumers of one norm keep the same tensor.
        for names in shared:
            linears -= p.compute * arch.hidden * max(0, len(set(names) & set(kept) & set(projections)) - 1)
    mlp = 3 * p.compute * arch.intermediate * max(1, arch.experts_used)  # silu's input, and both factors of the product
    return norms + linears + mlp


def _experts_saved(cfg: ModelConfig, arch: Architecture, p: Precision) -> float:
    """Of one token beside its MLPs: what each of its experts gave, for the router's weights; the router's own; where
    experts train, their inputs, a copy for each."""
    trains = cfg.method == "full" or "experts" in cfg.lora_places
    by_expert = p.compute * (arch.hidden + trains * (arch.hidden + arch.intermediate)) + INDEX_BYTES
    return arch.experts_used * by_expert + (p.compute + 4) * arch.experts


INDEX_BYTES = 3 * 8
"""Which token, which expert, and back."""


def _norm_saved(width: int, input_bytes: int, p: Precision) -> float:
    """RMSNorm works on float32 (a copy unless its input is that); to train its weight it keeps the normed input too."""
    return 4 * width + (input_bytes * width if p.trains_all else 0)


def _has_dropout(cfg: ModelConfig) -> bool:
    return cfg.method != "full" and cfg.lora_dropout > 0


def _kept_inputs(cfg: ModelConfig, arch: Architecture) -> Sequence[str]:
    """Projections that keep their input for a weight's gradient."""
    return arch.projection_names if cfg.method == "full" else adapted_projections(cfg, arch)


def _linear_saved(cfg: ModelConfig, arch: Architecture, name: str, inputs: int, p: Precision) -> float:
    """Input of a projection in the compute type; with dropout a mask of a byte; the adapter's inner activations."""
    if cfg.method == "full":
        # The attention's output is kept by the attention already.
        return 0 if name == "o_proj" else p.compute * inputs
    if name not in adapted_projections(cfg, arch):
        return 0
    dropout = inputs if cfg.lora_dropout > 0 else 0
    return p.compute * inputs + dropout + p.compute * cfg.lora_rank


def _attention_saved(cfg: ModelConfig, arch: Architecture, batch: int, length: int) -> float:
    """Queries, keys, values, output and, if eager, the whole matrix of probabilities."""
    p, tokens = Precision.of(cfg), batch * length
    if planned_attention(cfg) != "eager":  # flash kernels, for rows and packs alike: no mask, grouped heads
        return tokens * (p.compute * (2 * arch.q + 2 * arch.kv) + 4 * arch.heads)
    expanded = p.compute * 4 * arch.q * tokens  # keys and values are repeated for every query head
    return expanded + (4 + (p.compute if p.compute < 4 else 0)) * batch * arch.heads * length**2


def planned_precision(cfg: ModelConfig) -> ModelConfig:
    """`auto` is planned as on a GPU that multiplies bfloat16 fast; a run plans with what it has chosen."""
    return cfg.resolved(True)


def planned_attention(cfg: ModelConfig) -> str:
    """`auto` is planned as sdpa, which is there on every GPU."""
    return "sdpa" if cfg.attention == "auto" else cfg.attention


def cast_weights(cfg: ModelConfig, arch: Architecture) -> float:
    """Copies of one layer's weights in the compute type, kept until its backward."""
    if not cfg.autocast:
        return 0
    by_place = adapters_by_place(cfg, arch)
    adapters = 2 * (by_place["language"] + by_place["experts"]) / arch.layers
    if cfg.method == "full" or (cfg.method == "lora" and cfg.dtype == "float32"):
        return 2 * arch.largest_layer + adapters
    return adapters


def expert_weights(cfg: ModelConfig, arch: Architecture) -> float:
    """A layer's experts as they are computed with: unpacked, or with what the adapter adds; kept until its backward."""
    if cfg.method == "qlora" or "experts" in cfg.lora_places:
        return Precision.of(cfg).frozen * arch.layer_experts
    return 0


def first_layer_unsaved(cfg: ModelConfig, arch: Architecture, tokens: int) -> float:
    """Before the first adapter nothing needs a gradient: no copy for the norm, no mask of a dropout."""
    if cfg.method == "full" or cfg.vision_has_gradient:
        return 0
    first = (
        {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"} if arch.linear_layers else {"q_proj", "k_proj", "v_proj"}
    )
    masks = len(first & set(adapted_projections(cfg, arch))) if cfg.lora_dropout > 0 else 0
    return tokens * arch.hidden * (4 + masks)


def loss_bytes(cfg: ModelConfig, arch: Architecture, num_supervised: int) -> float:
    """Some rows of logits, in the compute type and twice in float32, and the head's weight in the compute type."""
    compute = Precision.of(cfg).compute
    logits = head_rows(num_supervised, arch.vocab) * arch.vocab * (compute + 4 + (4 if compute < 4 else 0))
    weight = compute * arch.embedding if cfg.method == "full" and compute < 4 else 0
    return logits + weight + head_saved(cfg, arch, num_supervised)


def head_saved(cfg: ModelConfig, arch: Architecture, num_supervised: int) -> float:
    """The hidden states' gradient, and a value a logit for the head's own if it trains."""
    per_token = arch.hidden + (arch.vocab if cfg.method == "full" else 0)
    return Precision.of(cfg).compute * num_supervised * per_token


def layer_backward(cfg: ModelConfig, arch: Architecture, tokens: int) -> float:
    """What is alive beside all that a layer saved, at its output: hidden states, the product of the MLP, gradients.

    Without autocast a bfloat16 projection with an adapter also holds its input in float32, before and after dropout.
    """
    p = Precision.of(cfg)
    a_token = 5 * p.stream * arch.hidden
    if cfg.method == "full":
        sizes = [inputs * outputs for _, inputs, outputs in arch.all_projections]
        largest = max(sizes + [arch.experts * inputs * outputs for inputs, outputs in arch.fused.values()])
        return tokens * a_token + (4 + (2 if cfg.autocast else 0)) * largest
    a_token += p.compute * arch.intermediate * max(1, arch.experts_used)
    if arch.experts:
        a_token += 2 * p.compute * arch.hidden * arch.experts_used
    if cfg.method == "lora" and p.stream < 4 and not cfg.autocast:
        a_token += 4 * arch.intermediate * (2 if cfg.lora_dropout > 0 else 1)
    return tokens * a_token


def head_gradient(cfg: ModelConfig, arch: Architecture) -> float:
    """Of the head's weight, in the compute type and as float32."""
    if cfg.method != "full":
        return 0
    return (4 + (2 if cfg.autocast else 0)) * arch.embedding


def waiting_gradient(cfg: ModelConfig, arch: Architecture) -> float:
    """A tied head's gradient waits for the embedding's: only their sum is added to what has been accumulated."""
    return 4 * arch.embedding if cfg.method == "full" and arch.tied else 0


def embedding_gradient(cfg: ModelConfig, arch: Architecture) -> float:
    """The embedding's own, float32 and dense; with a tied head also the head's and their sum."""
    if cfg.method != "full":
        return 0
    return 4 * arch.embedding * (3 if arch.tied else 1)


def tower_bytes(cfg: ModelConfig, arch: Architecture, patches: int) -> float:
    """What one block of the tower needs at once: the stream, queries, keys and values, and their float32 rotation."""
    return patches * 46 * arch.vision_hidden


def tower_dtype_bytes(cfg: ModelConfig) -> int:
    """Of a number of the tower's weights, to whose type pixels are brought."""
    return 4 if cfg.train_vision else Precision.of(cfg).frozen


def tower_saved_bytes(cfg: ModelConfig, arch: Architecture, patches: int) -> float:
    """What autograd keeps of a tower that trains, or has adapters."""
    if cfg.method != "full":
        return merger_saved(cfg, arch, patches) + adapted_blocks_saved(cfg, arch, patches)
    if not cfg.train_vision:
        return 0
    p = Precision.of(cfg)
    stream = 4 * arch.vision_hidden
    block = stream * 4 + p.compute * (9 * arch.vision_hidden + 2 * arch.vision_intermediate)
    kept = arch.vision_depth * (stream if cfg.gradient_checkpointing else block)
    # Copies of weights in the compute type: of the mergers, which are not checkpointed, or of the whole tower.
    casts = (arch.mergers if cfg.gradient_checkpointing else arch.vision) * (2 if cfg.autocast else 0)
    return patches * kept + casts


def merger_saved(cfg: ModelConfig, arch: Architecture, patches: int) -> float:
    """Of the mergers with adapters in them or before them: they are never checkpointed."""
    if not cfg.vision_has_gradient:
        return 0
    p, (wide, _) = Precision.of(cfg), arch.merger_matrices[0]
    has_adapters, from_blocks = "merger" in cfg.lora_places, "vision" in cfg.lora_places
    a_token = p.compute * wide  # GELU's input
    if has_adapters:
        a_token += 2 * _adapted_input(cfg, wide, p)
    if from_blocks:
        a_token += 4 * wide  # of the norm
    casts = 2 * adapters_by_place(cfg, arch)["merger"] if cfg.autocast else 0
    if _casts_frozen(cfg):
        matrices = arch.merger_matrices if from_blocks else arch.merger_matrices[1:]
        casts += 2 * arch.num_mergers * sum(inputs * outputs for inputs, outputs in matrices)
    return arch.num_mergers * a_token * patches / arch.merge**2 + casts


def adapted_blocks_saved(cfg: ModelConfig, arch: Architecture, patches: int) -> float:
    if "vision" not in cfg.lora_places:
        return 0
    kept = arch.vision_hidden * Precision.of(cfg).frozen * patches  # the stream before it
    return arch.vision_depth * (kept if cfg.gradient_checkpointing else adapted_block_saved(cfg, arch, patches))


def adapted_block_saved(cfg: ModelConfig, arch: Architecture, patches: int) -> float:
    """Of one block that is not checkpointed, or is computed again: norms, adapters' inputs, attention, GELU."""
    p, v, i = Precision.of(cfg), arch.vision_hidden, arch.vision_intermediate
    norms = 2 * 4 * v
    adapters = sum(_adapted_input(cfg, inputs, p) for inputs, _ in arch.vision_matrices)
    attention = p.compute * 4 * v
    casts = 2 * adapters_by_place(cfg, arch)["vision"] / arch.vision_depth if cfg.autocast else 0
    if _casts_frozen(cfg):
        casts += 2 * sum(inputs * outputs for inputs, outputs in arch.vision_matrices)
    return patches * (norms + adapters + attention + p.compute * i) + casts


def _adapted_input(cfg: ModelConfig, width: int, p: Precision) -> float:
    """Of a layer with an adapter: its input in the compute type, dropout's mask, the adapter's inner activations."""
    return p.compute * (width + cfg.lora_rank) + (width if cfg.lora_dropout > 0 else 0)


def _casts_frozen(cfg: ModelConfig) -> bool:
    """Whether autocast makes copies of frozen weights of the tower."""
    return cfg.autocast and cfg.dtype == "float32"


def tower_backward(cfg: ModelConfig, arch: Architecture, patches: int) -> float:
    """Beside what the tower saved: a block computed again, and the gradients of its widest part."""
    if "vision" not in cfg.lora_places:
        return 0
    again = adapted_block_saved(cfg, arch, patches) if cfg.gradient_checkpointing else 0
    inputs = Precision.of(cfg).compute if cfg.autocast else 4
    widest = 2 * inputs * arch.vision_intermediate * (2 if cfg.lora_dropout > 0 else 1)
    return again + patches * widest


# advice


@dataclass(frozen=True)
class Change:
    """Overrides that make a config smaller, and what they cost."""

    overrides: tuple[str, ...]
    cost: str

    def apply(self, config: Config) -> Config:
        values = to_json(config)
        for override in self.overrides:
            apply_override(values, override)
        return build_config(values)

    def __add__(self, other: "Change") -> "Change":
        # A later override of the same key stands.
        merged = {o.partition("=")[0]: o for o in (*self.overrides, *other.overrides)}
        return Change(tuple(merged.values()), "; ".join(c for c in (self.cost, other.cost) if c))


def changes(config: Config, num_gpus: int) -> Iterator[Change]:
    """What can be made smaller, the cheapest first: first what changes nothing but time, then what the model sees."""
    train, model, vision = config.train, config.model, config.vision
    eight_bits = num_gpus == 1 and model.method == "full" and not train.zero_stage and train.optimizer == "adamw"
    # ZeRO shards, and moves, float32 alone.
    float32 = ("train.optimizer=adamw",) if eight_bits or train.optimizer != "adamw" else ()
    batch = train.batch_size
    while batch > 1 and batch % 2 == 0:
        batch //= 2
        accumulation = train.accumulation * train.batch_size // batch
        yield Change(
            (f"train.batch_size={batch}", f"train.accumulation={accumulation}"), "same optimizer step, a little slower"
        )
    if model.gradient_checkpointing is not True:
        yield Change(("model.gradient_checkpointing=true",), "about a third more time than with none")
    most = 2 if model.method == "qlora" else 3
    if num_gpus > 1:
        for stage in range(max(2, train.zero_stage + 1), most + 1):
            yield Change((f"train.zero_stage={stage}", *float32), "more traffic between the GPUs")
    if eight_bits:
        yield Change(("train.optimizer=paged_adamw_8bit",), "averages in 8 bits, and each step waits for the GPU")
    if not train.cpu_offload:
        stage = most if num_gpus > 1 or model.method == "full" else max(1, train.zero_stage)
        stages = () if stage == train.zero_stage else (f"train.zero_stage={stage}",)
        yield Change((*stages, "train.cpu_offload=true", *float32), "each step waits for the host's memory")
    tokens = vision.max_tokens_per_image
    while not vision.tiles and tokens // 2 >= vision.min_tokens_per_image:
        tokens //= 2
        yield Change((f"vision.max_tokens_per_image={tokens}",), "smaller pictures: small targets blur")
    if model.method == "lora" and train.zero_stage != 3:
        yield Change(("model.method=qlora",), "4-bit base weights")
    if model.method == "lora" and train.zero_stage == 3:
        yield Change(("model.method=qlora", "train.zero_stage=2"), "4-bit base weights")


def cheapest_fit(
    config: Config, arch: Architecture, row_of, num_gpus: int, gpu_gb: float
) -> tuple[Change, Plan] | None:
    """The first change that makes the config fit, alone or with all cheaper ones; None if none does.

    `row_of` gives the RowShape of a config: fewer vision tokens make shorter rows.
    """
    single = list(changes(config, num_gpus))
    combined = Change((), "")
    together = []
    for change in single:
        combined = combined + change
        together.append(combined)
    for change in (*single, *together[1:]):
        smaller = change.apply(config)
        plan = plan_memory(smaller, arch, row_of(smaller), num_gpus)
        if plan.fits(gpu_gb):
            return change, plan
    return None


CHOSEN_SHARE = 0.9
"""Of a card's memory, that a plan may take for which fewer layers are computed again: plans are good to 10 %."""


def choose_checkpointing(
    config: Config, arch: Architecture, row: RowShape, num_gpus: int, gpu_gb: float | None
) -> tuple[Config, str]:
    """The config without "auto" for model.gradient_checkpointing, and the line that says what was chosen and why.

    As few layers as let the plan fit a card of `gpu_gb` with room to spare; all if that does not, or if there is no card.
    """
    if config.model.gradient_checkpointing != "auto":
        return config, ""

    def with_layers(num: int) -> Config:
        again = True if num == arch.layers else num or False
        return replace(config, model=replace(config.model, gradient_checkpointing=again))

    every = with_layers(arch.layers)
    if gpu_gb is None:
        return every, "gradient checkpointing: all layers (auto: no GPU whose memory could be planned)"
    room = CHOSEN_SHARE * gpu_gb * GIB
    none = plan_memory(with_layers(0), arch, row, num_gpus).total
    for num in range(arch.layers + 1):
        total = plan_memory(with_layers(num), arch, row, num_gpus).total
        if total <= room:
            break
    chosen = {0: "none", arch.layers: "all layers"}.get(num, f"{num} of {arch.layers} layers")
    why = f"planned {total / GIB:.1f} GiB, {none / GIB:.1f} with none, for {gpu_gb:.0f} GB"
    return with_layers(num), f"gradient checkpointing: {chosen} (auto: {why})"


# for people


def describe_plan(
    config: Config,
    row: RowShape | None = None,
    num_gpus: int = 1,
    gpu_gb: float | None = None,
    arch: Architecture | None = None,
) -> str:
    """A short block for the start of a run: the peak, its parts and whether it fits; rows by budget if none is given."""
    arch = arch or find_architecture(config.model.path)
    plan = plan_memory(config, arch, row or budget_row(config, arch), num_gpus)
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in plan.parts.items() if size >= 0.005 * GIB)
    lines = [
        f"planned peak: {plan.total / GIB:.1f} GiB a GPU on {num_gpus}, at the {plan.moment} ({parts})",
        f"  for {config.train.batch_size} rows of {plan.row.tokens} tokens, {plan.row.image_tokens} of them vision, "
        f"{plan.row.supervised} supervised" + (f" ({plan.row.source})" if plan.row.source else ""),
        f"  in {planned_precision(config.model).precision}",
    ]
    if arch.experts:
        meets = f"{arch.active / 1e9:.1f} of {arch.language / 1e9:.1f} billion parameters of the language model"
        lines.append(f"  a token meets {meets}: {arch.experts_used} of {arch.experts} experts a layer")
    if plan.loading_bytes:
        lines.append(f"  and {plan.loading_bytes / GIB:.1f} GiB while it is loaded, before its experts are in 4 bit")
    if plan.host_bytes:
        lines.append(f"  and {plan.host_bytes / GIB:.1f} GiB of the host's memory a rank")
    if gpu_gb is not None:
        verdict = "fits" if plan.fits(gpu_gb) else "does NOT fit; qwenvl-agent plan names what would"
        lines.append(f"  {verdict} {gpu_gb:g} GB")
    return "\n".join(lines)
