"""All settings of a run: nested dataclasses, a strict JSON loader, `key.path=value` overrides. Standard library only.

A config file lists only what differs from the defaults here. An unknown key is an error that names the nearest known
one; a wrong type is an error that names the path. Sweeps are made of overrides, not of more files.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

FORMAT_NAMES = ("plain", "native", "hybrid", "no_thought")
LORA_PLACES = ("language", "merger", "vision")
LANGUAGE_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_LOGITS = 2**25
"""That a training step makes at once, 128 MiB in float32. With fewer the head's weight is read more often."""


def head_rows(num_tokens: int, vocab: int) -> int:
    """Tokens whose logits are made at once: in parts as even as can be, because a product of few rows is slow."""
    num_parts = max(1, -(-num_tokens * vocab // MAX_LOGITS))
    return max(1, -(-num_tokens // num_parts))


def check_choice(path: str, value: str, choices: Sequence[str]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{path} is {value!r}, which means nothing here; use one of {', '.join(choices)}")


def check_at_least(path: str, value: float, least: float) -> None:
    """ValueError unless `value >= least`."""
    if value < least:
        raise ValueError(f"{path} is {value}, below {least}: nothing could run; raise it")


SHIPPED_BASES = ("tiny", "tiny_screens")
"""Names of checkpoints that the package ships, in assets/."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str
    """Hub id, local folder, or one of SHIPPED_BASES."""
    method: str = "qlora"
    """full | lora | qlora (NF4 with double quantisation, language model only; all else as lora)."""
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_targets: tuple[str, ...] = LANGUAGE_PROJECTIONS
    """Projections of the language model that get an adapter."""
    lora_places: tuple[str, ...] = ("language",)
    """Where adapters are: language | merger (of patches into tokens, deepstack's too) | vision (the tower's blocks)."""
    train_vision: bool = False
    """Train the vision tower and its mergers too (method full only). Frozen without adapters, they run without autograd."""
    dtype: str = "auto"
    """Of the frozen weights: bfloat16 | float32 | auto: bfloat16 under autocast, else float32. Trained weights are
    float32 masters."""
    autocast: bool | str = "auto"
    """bfloat16 autocast in forward and backward: true | false | auto: where the device multiplies bfloat16 fast
    (precision.py). A run's config.json has what was chosen."""
    attention: str = "auto"
    """auto: flash_attention_2 if installed on CUDA, else sdpa on CUDA, eager on a CPU; or one of those names."""
    gradient_checkpointing: bool = True
    compile: bool = False
    """Compile the language model's blocks for training. Needs a C++ compiler on a CPU; evaluation runs uncompiled."""

    def __post_init__(self):
        check_choice("model.method", self.method, ("full", "lora", "qlora"))
        check_choice("model.dtype", self.dtype, ("auto", "bfloat16", "float32"))
        if not isinstance(self.autocast, bool) and self.autocast != "auto":
            raise ValueError(
                f'model.autocast is {self.autocast!r}, which means nothing here; use true, false or "auto"'
            )
        check_choice("model.attention", self.attention, ("auto", "eager", "sdpa", "flash_attention_2"))
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"model.lora_dropout is {self.lora_dropout}: adapters would see nothing; use 0 to 0.9")
        if self.train_vision and self.method != "full":
            raise ValueError(
                f"model.train_vision is true with model.method {self.method!r}: the vision tower would "
                'train alone in full; use model.method=full, or model.lora_places=["language", "merger", "vision"]'
            )
        for place in self.lora_places:
            check_choice("model.lora_places", place, LORA_PLACES)
        if "language" not in self.lora_places or len(set(self.lora_places)) < len(self.lora_places):
            raise ValueError(
                f"model.lora_places is {list(self.lora_places)}: adapters are at least in the language model, and each "
                'place is named once; write ["language", "merger"]'
            )
        if self.method == "full" and self.lora_places != ("language",):
            raise ValueError(
                f"model.lora_places is {list(self.lora_places)} with model.method 'full', which has no adapters: it "
                "would change nothing; use model.train_vision=true"
            )

    @property
    def is_automatic(self) -> bool:
        """Whether the device has a say in the precision."""
        return "auto" in (self.autocast, self.dtype)

    def resolved(self, is_fast: bool) -> "ModelConfig":
        """Without an "auto", on a device that multiplies bfloat16 fast or does not."""
        autocast = is_fast if self.autocast == "auto" else self.autocast
        following = "bfloat16" if autocast else "float32"
        return dataclasses.replace(self, autocast=autocast, dtype=following if self.dtype == "auto" else self.dtype)

    @property
    def precision(self) -> str:
        """In words, of resolved settings."""
        assert not self.is_automatic, f"not resolved: autocast {self.autocast}, dtype {self.dtype}"
        if self.autocast:
            return f"bfloat16 autocast, frozen weights in {self.dtype}"
        if self.method == "full" and self.dtype == "bfloat16" and not self.train_vision:
            return "float32, the frozen vision tower in bfloat16"
        return "float32" if self.method == "full" else self.dtype

    @property
    def vision_has_gradient(self) -> bool:
        """Whether anything of the vision tower or its mergers trains."""
        return self.train_vision or self.lora_places != ("language",)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    path: str
    """A dataset.jsonl of recorded turns or a chat-style JSONL; a folder means the dataset.jsonl in it."""
    kind: str = "safari"
    """safari: the recorded form of docs/DATA.md | chat: messages + images + tools | computer: screenshot + action."""
    weight: float = 1.0
    """Share of rows drawn from this source, relative to the other sources' weights."""

    def __post_init__(self):
        check_choice("data.sources[].kind", self.kind, ("safari", "chat", "computer"))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    sources: tuple[SourceConfig, ...] = ()
    cache_dir: str = "cache"
    """Arrow files, keyed by the source files' hash; the reject report lies beside them."""
    eval_fraction: float = 0.05
    """Share of episodes held out for the offline step metrics; the split is by episode."""
    seed: int = 0
    """Of the split and of the order of rows."""
    max_thought_chars: int = 400
    """A recorded thought longer than this is replaced by a derived one."""
    num_workers: int = 2


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    format: str = "native"
    """plain | native | hybrid | no_thought."""
    history_steps: int = 0
    """Steps before the current one that the prompt shows. The safari agent's memory is its notepad: 0."""
    supervise_history: bool = False
    """Also learn the turns in the history."""

    def __post_init__(self):
        check_choice("prompt.format", self.format, FORMAT_NAMES)
        check_at_least("prompt.history_steps", self.history_steps, 0)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    max_tokens_per_image: int = 1024
    min_tokens_per_image: int = 64
    """The published processor's minimum: 64 tokens, 256 x 256 px at 32 px a token."""
    max_tokens_per_row: int = 4096
    """Vision tokens of one row, history included."""
    max_row_tokens: int = 8192
    """All tokens of one row, text included; what is longer is reduced by `reduce` or dropped and counted."""
    tiles: int = 0
    """A picture is a board of this many tiles a side: resize it so that a tile is a whole number of tokens; 0: off."""
    feature_cache_gb: float = 0.0
    """Keep the frozen tower's features of training pictures under data.cache_dir, up to so many GB; 0: none. It pays
    from the second epoch on, and more the larger pictures are: 1.6 MB for 100 tokens of the 2B."""
    reduce: str = "drop_images"
    """Over budget: drop_images (the oldest whole pictures of the history) | drop_turns (the oldest whole steps of the
    history) | error."""

    def __post_init__(self):
        check_choice("vision.reduce", self.reduce, ("drop_images", "drop_turns", "error"))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    max_steps: int = 0
    """Optimizer steps; 0: as many as `epochs` needs."""
    epochs: float = 3.0
    batch_size: int = 2
    """Rows of one micro-batch on one rank."""
    accumulation: int = 4
    """Micro-batches of one optimizer step on one rank."""
    pack_tokens: int = 0
    """Lay a micro-batch's rows in packs of about so many tokens, what they begin with once; 0: a padded row each. Needs
    model.attention sdpa or eager."""
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    warmup_fraction: float = 0.03
    min_lr_fraction: float = 0.1
    """The cosine ends at this share of learning_rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    weight_thought: float = 1.0
    """Loss weight of a thought token."""
    weight_call: float = 1.0
    """Loss weight of a tool-call token, and of free text."""
    seed: int = 0
    log_every: int = 10
    save_every: int = 500
    eval_every: int = 500
    """Optimizer steps between evaluations (offline steps and rollouts); 0: only at the end."""
    patience: int = 0
    """End when so many evaluations in a row were no better than the best before them; 0: never."""
    keep_checkpoints: int = 2
    """Besides `last` and `best`."""
    zero_stage: int = 0
    """DeepSpeed ZeRO stage 1, 2 or 3; 0: no DeepSpeed."""
    cpu_offload: bool = False
    """ZeRO keeps the optimizer's state, and at stage 3 the parameters too, in the host's memory."""

    def __post_init__(self):
        check_at_least("train.batch_size", self.batch_size, 1)
        check_at_least("train.accumulation", self.accumulation, 1)
        check_at_least("train.pack_tokens", self.pack_tokens, 0)
        check_at_least("train.patience", self.patience, 0)
        if self.patience and not self.eval_every:
            raise ValueError(
                f"train.patience is {self.patience} and train.eval_every is 0: there is no evaluation before the end, "
                "so nothing would end earlier; set train.eval_every"
            )
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"train.zero_stage is {self.zero_stage}, DeepSpeed has 1, 2 and 3; use one, or 0 for none")
        if self.cpu_offload and not self.zero_stage:
            raise ValueError("train.cpu_offload is true without ZeRO: it would have no effect; set train.zero_stage")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    suite: str = "safari"
    """Besides the offline steps: safari (episodes), clicks (held-out screens), or none."""
    world: dict = field(default_factory=dict)
    """Settings of the world, as in docs/DATA.md; checked by the world itself."""
    episodes: int = 32
    """Closed-loop episodes of an evaluation inside training, on seeds of their own."""
    step_rows: int = 256
    """Held-out rows of the offline step metrics; 0: none."""
    batch_size: int = 32
    max_new_tokens: int = 512
    temperature: float = 0.0
    """0: greedy."""
    constrained: bool = False
    """Choose only among tokens that keep an answer to tools strictly readable, with calls that fit the tools' schemas."""
    time_limit_s: float = 600.0
    """An evaluation inside training stops starting new steps after this; unfinished episodes count as failures."""

    def __post_init__(self):
        check_choice("eval.suite", self.suite, ("safari", "clicks", "none"))


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    steps: int = 0
    """Optimizer steps to profile, after three to warm up: RUN/profile/summary.md and trace.json.gz."""

    def __post_init__(self):
        check_at_least("profile.steps", self.steps, 0)


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str
    """Of the run: outputs go to runs_dir/name."""
    runs_dir: str = "runs"
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def __post_init__(self):
        if self.model.method == "qlora" and self.train.zero_stage == 3:
            raise ValueError(
                "train.zero_stage is 3 with model.method 'qlora': 4-bit weights cannot be sharded, every rank would "
                "hold the whole model; use zero_stage 2 or less, or model.method=lora"
            )
        if self.vision.feature_cache_gb and (self.model.vision_has_gradient or self.train.zero_stage == 3):
            raise ValueError(
                f"vision.feature_cache_gb is {self.vision.feature_cache_gb} with a vision tower that trains, or that "
                "ZeRO-3 holds in slices: kept features would be wrong, or not to be had; set it to 0"
            )
        if self.train.pack_tokens and self.model.attention not in ("sdpa", "eager"):
            raise ValueError(
                f"train.pack_tokens is {self.train.pack_tokens} with model.attention {self.model.attention!r}: flash "
                "attention takes no mask of rows that share a beginning; set model.attention=sdpa, or pack_tokens=0"
            )

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.name


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a JSON config and apply `key.path=value` overrides.

    A value is parsed as JSON (`true`, `1e-4`, `null`, `[1, 2]`) and taken as a string if it is not JSON.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg}): no setting can be read; correct it") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: there is no config to run; name an existing file") from None
    for override in overrides:
        apply_override(values, override)
    return build_config(values)


def build_config(values: dict) -> Config:
    """A Config from plain JSON values; ValueError names the path of what is wrong."""
    return _build(Config, values, "")


def apply_override(values: dict, override: str) -> None:
    """Set `a.b=value` in nested dicts, in place."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override {override!r} has no '=': nothing would be set; write key.path=value")
    *parents, last = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"override {override!r}: {parent!r} is a value, not a group; name a key of a group")
    try:
        values[last] = json.loads(text)
    except json.JSONDecodeError:
        values[last] = text


def to_json(config: object) -> dict:
    """The resolved config as plain JSON values; `build_config` reads it back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _build(cls: type, values: object, path: str) -> object:
    if not isinstance(values, dict):
        raise ValueError(f"{path or 'config'} is {values!r}, not an object with settings; write {{...}}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown key {_join(path, key)!r}: it would have no effect; nearest known key: {near!r}")
    required = [name for name, f in known.items() if _has_no_default(f) and name not in values]
    if required:
        raise ValueError(f"{_join(path, required[0])!r} is missing and has no default: set it")
    hints = typing.get_type_hints(cls)
    return cls(**{key: _convert(value, hints[key], _join(path, key)) for key, value in values.items()})


def _has_no_default(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _convert(value: object, hint: object, path: str) -> object:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            return tuple(_convert(v, k, f"{path}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kinds = args if isinstance(hint, types.UnionType) else (hint,)
    if type(value) in kinds and type(value) in (bool, int, float, str, dict):
        return value
    name = hint.__name__ if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) else str(hint)
    raise ValueError(f"{path} is {value!r}, which is not of type {name}; correct the value")
