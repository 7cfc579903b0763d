"""All settings of a run: nested dataclasses, a strict JSON loader, `key.path=value` overrides. Standard library only.

A config file lists only what differs from the defaults here. An unknown key is an error that names the nearest known
one; a wrong type is an error that names the path; every number says in its type, as `Annotated[int, Range(...)]`, which
values it may have. Sweeps are made of overrides, not of more files. What needs more than the settings themselves, the
world's own keys and the suite against the data, is checked by `evaluation.suites.check_suite`.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

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


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have, both ends included; `harm` is what any other would do."""

    least: float
    most: float
    harm: str = "nothing could run"

    def check(self, path: str, value: float) -> None:
        """ValueError unless `value` is one of them; NaN never is."""
        if self.least <= value <= self.most:
            return
        if value != value:
            raise ValueError(f"{path} is {value}, no number: {self.harm}; use {self.least:g} to {self.most:g}")
        side, limit, remedy = ("below", self.least, "raise") if value < self.least else ("above", self.most, "lower")
        raise ValueError(f"{path} is {str(value)[:40]}, {side} {limit:.12g}: {self.harm}; {remedy} it")


ALMOST_ONE = 0.9999
TINY = 1e-12
MAX_SEED = 2**31 - 1
"""numpy's seeds have 32 bits, and a rank's is the run's and its own number."""
Seed = Annotated[int, Range(0, MAX_SEED, "random numbers could not be drawn from it")]
Share = Annotated[float, Range(0, 1, "it is a share")]


def check_values(settings: object, path: str) -> None:
    """ValueError for the first number outside its range, and for a text that is empty or has control characters."""
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        value, (limits, *_) = getattr(settings, name), getattr(hint, "__metadata__", (None,))
        where = _join(path, name)
        if isinstance(limits, Range):
            for number in value if isinstance(value, tuple) else (value,):
                limits.check(where, number)
        elif isinstance(value, str) and (not value.strip() or min(value) < " "):
            raise ValueError(f"{where} is {value!r}: nothing has that name; write text without control characters")


def check_name(name: str) -> None:
    """ValueError unless `name` can be one folder inside runs_dir."""
    if name in (".", "..") or "/" in name or "\\" in name or len(name.encode(errors="replace")) > 200:
        raise ValueError(
            f"name is {name!r}: results would lie elsewhere than in a folder of runs_dir; use a name of at most 200 bytes "
            "without slashes, and runs_dir for the place"
        )


SHIPPED_BASES = ("tiny", "tiny_screens")
"""Names of checkpoints that the package ships, in assets/."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str
    """Hub id, local folder, or one of SHIPPED_BASES."""
    method: str = "qlora"
    """full | lora | qlora (NF4 with double quantisation, language model only; all else as lora)."""
    lora_rank: Annotated[int, Range(1, 4096, "no matrix of the model could be changed by that rank")] = 16
    lora_alpha: Annotated[int, Range(1, 65536, "adapters are scaled by lora_alpha / lora_rank")] = 32
    lora_dropout: Annotated[float, Range(0, ALMOST_ONE, "adapters would see nothing")] = 0.05
    lora_targets: tuple[str, ...] = LANGUAGE_PROJECTIONS
    """Projections of the language model that get an adapter, some of LANGUAGE_PROJECTIONS."""
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
        check_values(self, "model")
        check_choice("model.method", self.method, ("full", "lora", "qlora"))
        check_choice("model.dtype", self.dtype, ("auto", "bfloat16", "float32"))
        if not isinstance(self.autocast, bool) and self.autocast != "auto":
            raise ValueError(
                f'model.autocast is {self.autocast!r}, which means nothing here; use true, false or "auto"'
            )
        check_choice("model.attention", self.attention, ("auto", "eager", "sdpa", "flash_attention_2"))
        if self.train_vision and self.method != "full":
            raise ValueError(
                f"model.train_vision is true with model.method {self.method!r}: the vision tower would "
                'train alone in full; use model.method=full, or model.lora_places=["language", "merger", "vision"]'
            )
        check_targets(self.lora_targets)
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


def check_targets(targets: Sequence[str]) -> None:
    """ValueError unless each is a projection of the language model, named once."""
    for target in targets:
        if target not in LANGUAGE_PROJECTIONS:
            raise ValueError(
                f"model.lora_targets names {target!r}, no projection of the language model: no adapter would be there; "
                f"use some of {', '.join(LANGUAGE_PROJECTIONS)} (layers of the merger and the vision tower get theirs "
                'by model.lora_places=["language", "merger", "vision"])'
            )
    if not targets or len(set(targets)) < len(targets):
        raise ValueError(
            f"model.lora_targets is {list(targets)}: at least one projection gets an adapter, and each is named once; "
            'write ["q_proj", "v_proj"]'
        )


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    path: str
    """A dataset.jsonl of recorded turns or a chat-style JSONL; a folder means the dataset.jsonl in it."""
    kind: str = "safari"
    """safari: the recorded form of docs/DATA.md | chat: messages + images + tools | computer: screenshot + action."""
    weight: Annotated[float, Range(1e-6, 1e6, "rows are drawn by it; a source that is not wanted is left out")] = 1.0
    """Share of rows drawn from this source, relative to the other sources' weights."""

    def __post_init__(self):
        check_values(self, "data.sources[]")
        check_choice("data.sources[].kind", self.kind, ("safari", "chat", "computer"))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    sources: tuple[SourceConfig, ...] = ()
    cache_dir: str = "cache"
    """Arrow files, keyed by the source files' hash; the reject report lies beside them."""
    eval_fraction: Annotated[float, Range(0, ALMOST_ONE, "it is a share, and rows must be left to train on")] = 0.05
    """Share of episodes held out for the offline step metrics; the split is by episode."""
    seed: Seed = 0
    """Of the split and of the order of rows."""
    max_thought_chars: Annotated[int, Range(0, 10**6, "no thought has that length")] = 400
    """A recorded thought longer than this is replaced by a derived one."""
    check_pictures: str = "auto"
    """When the file is read: header (size and kind, microseconds) | whole (decode each picture once; its cost is in
    docs/DATA.md) | auto (whole for files of up to 2,000 lines)."""
    on_unusable_row: str = "error"
    """A row that turns out unusable in a step (its picture was deleted or damaged meanwhile): error | skip (the next
    usable row takes its place; named on stderr, counted as train/skipped_rows)."""
    num_workers: Annotated[int, Range(0, 1024, "rows are made in so many processes; 0: in the trainer's own")] = 2

    def __post_init__(self):
        check_values(self, "data")
        check_choice("data.check_pictures", self.check_pictures, ("auto", "header", "whole"))
        check_choice("data.on_unusable_row", self.on_unusable_row, ("error", "skip"))


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    format: str = "native"
    """plain | native | hybrid | no_thought."""
    history_steps: Annotated[int, Range(0, 10_000, "no prompt has so many earlier steps")] = 0
    """Steps before the current one that the prompt shows. The safari agent's memory is its notepad: 0."""
    supervise_history: bool = False
    """Also learn the turns in the history."""

    def __post_init__(self):
        check_values(self, "prompt")
        check_choice("prompt.format", self.format, FORMAT_NAMES)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    max_tokens_per_image: Annotated[int, Range(1, 2**20, "no picture takes so many tokens")] = 1024
    min_tokens_per_image: Annotated[int, Range(1, 2**20, "no picture takes so many tokens")] = 64
    """The published processor's minimum: 64 tokens, 256 x 256 px at 32 px a token."""
    max_tokens_per_row: Annotated[int, Range(1, 2**24, "no row could be built")] = 4096
    """Vision tokens of one row, history included."""
    max_row_tokens: Annotated[int, Range(1, 2**24, "no row could be built")] = 8192
    """All tokens of one row, text included; what is longer is reduced by `reduce` or dropped and counted."""
    tiles: Annotated[int, Range(0, 1024, "no board has so many tiles a side")] = 0
    """A picture is a board of this many tiles a side: resize it so that a tile is a whole number of tokens; 0: off."""
    feature_cache_gb: Annotated[float, Range(0, 1e6, "no disk has that size")] = 0.0
    """Keep the frozen tower's features of training pictures under data.cache_dir, up to so many GB; 0: none. It pays
    from the second epoch on, and more the larger pictures are: 1.6 MB for 100 tokens of the 2B."""
    reduce: str = "drop_images"
    """Over budget: drop_images (the oldest whole pictures of the history) | drop_turns (the oldest whole steps of the
    history) | error."""

    def __post_init__(self):
        check_values(self, "vision")
        check_choice("vision.reduce", self.reduce, ("drop_images", "drop_turns", "error"))
        if self.min_tokens_per_image > self.max_tokens_per_image:
            raise ValueError(
                f"vision.min_tokens_per_image is {self.min_tokens_per_image}, more than vision.max_tokens_per_image "
                f"{self.max_tokens_per_image}: no picture has a size between them; lower the one or raise the other"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    max_steps: Annotated[int, Range(0, 10**9, "no run takes so many steps")] = 0
    """Optimizer steps; 0: as many as `epochs` needs."""
    epochs: Annotated[float, Range(1e-6, 1e6, "nothing would be learned, or for ever")] = 3.0
    batch_size: Annotated[int, Range(1, 65536, "a step takes so many rows at once")] = 2
    """Rows of one micro-batch on one rank."""
    accumulation: Annotated[int, Range(1, 65536, "a step takes so many micro-batches")] = 4
    """Micro-batches of one optimizer step on one rank."""
    pack_tokens: Annotated[int, Range(0, 2**24, "no pack has that length")] = 0
    """Lay a micro-batch's rows in packs of about so many tokens, what they begin with once; 0: a padded row each. Needs
    model.attention sdpa or eager."""
    learning_rate: Annotated[float, Range(0, 1, "the loss would climb")] = 2e-4
    weight_decay: Annotated[float, Range(0, 1, "weights would grow or vanish")] = 0.0
    warmup_fraction: Share = 0.03
    min_lr_fraction: Share = 0.1
    """The cosine ends at this share of learning_rate."""
    betas: Annotated[tuple[float, float], Range(0, ALMOST_ONE, "AdamW's averages would not follow the gradients")] = (
        0.9,
        0.95,
    )
    max_grad_norm: Annotated[float, Range(TINY, 1e12, "gradients are cut to that norm; 1e9 leaves them whole")] = 1.0
    weight_thought: Annotated[float, Range(0, 1e4, "tokens are weighted by it")] = 1.0
    """Loss weight of a thought token."""
    weight_call: Annotated[float, Range(0, 1e4, "tokens are weighted by it")] = 1.0
    """Loss weight of a tool-call token, and of free text."""
    seed: Seed = 0
    log_every: Annotated[int, Range(1, 10**9, "nothing would be logged")] = 10
    save_every: Annotated[int, Range(1, 10**9, "nothing would be saved on the way")] = 500
    eval_every: Annotated[int, Range(0, 10**9, "there is no such step")] = 500
    """Optimizer steps between evaluations (offline steps and rollouts); 0: only at the end."""
    patience: Annotated[int, Range(0, 10**9, "evaluations are counted from 0")] = 0
    """End when so many evaluations in a row were no better than the best before them; 0: never."""
    keep_checkpoints: Annotated[int, Range(0, 10**9, "there are no fewer than none")] = 2
    """Besides `last` and `best`."""
    zero_stage: Annotated[int, Range(0, 3, "DeepSpeed's ZeRO has the stages 1, 2 and 3, and 0 is none")] = 0
    """DeepSpeed ZeRO stage 1, 2 or 3; 0: no DeepSpeed."""
    cpu_offload: bool = False
    """ZeRO keeps the optimizer's state, and at stage 3 the parameters too, in the host's memory."""

    def __post_init__(self):
        check_values(self, "train")
        if self.patience and not self.eval_every:
            raise ValueError(
                f"train.patience is {self.patience} and train.eval_every is 0: there is no evaluation before the end, "
                "so nothing would end earlier; set train.eval_every"
            )
        if self.cpu_offload and not self.zero_stage:
            raise ValueError("train.cpu_offload is true without ZeRO: it would have no effect; set train.zero_stage")
        if self.weight_thought == self.weight_call == 0:
            raise ValueError(
                "train.weight_thought and train.weight_call are both 0: there would be nothing to learn; raise one"
            )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    suite: str = "safari"
    """Besides the offline steps: safari (episodes), clicks (held-out screens), or none."""
    world: dict = field(default_factory=dict)
    """Settings of the world, as in docs/DATA.md; checked by the world itself."""
    episodes: Annotated[int, Range(1, 1_000_000, "so many are played; none at all: eval.suite=none")] = 32
    """Closed-loop episodes of an evaluation inside training, on seeds of their own."""
    step_rows: Annotated[int, Range(0, 10**9, "there are no such rows")] = 256
    """Held-out rows of the offline step metrics; 0: none."""
    batch_size: Annotated[int, Range(1, 65536, "so many are answered at once")] = 32
    max_new_tokens: Annotated[int, Range(1, 2**20, "no answer has that length")] = 512
    temperature: Annotated[float, Range(0, 100, "answers could not be drawn")] = 0.0
    """0: greedy."""
    constrained: bool = False
    """Choose only among tokens that keep an answer to tools strictly readable, with calls that fit the tools' schemas."""
    time_limit_s: Annotated[float, Range(TINY, 1e9, "no step would be started in that time")] = 600.0
    """An evaluation inside training stops starting new steps after this; unfinished episodes count as failures."""

    def __post_init__(self):
        check_values(self, "eval")
        check_choice("eval.suite", self.suite, ("safari", "clicks", "none"))


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    steps: Annotated[int, Range(0, 10_000, "the trace would not fit the memory")] = 0
    """Optimizer steps to profile, after three to warm up: RUN/profile/summary.md and trace.json.gz."""

    def __post_init__(self):
        check_values(self, "profile")


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
        check_values(self, "")
        check_name(self.name)
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
        values = _parse(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg}): no setting can be read; correct it") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}: no setting can be read; correct it") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: there is no config to run; name an existing file") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, not an object with settings: write {{...}}")
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
        values[last] = _parse(text)
    except json.JSONDecodeError:
        values[last] = text
    except ValueError as error:
        raise ValueError(f"override {override!r}: {error}: nothing is set; correct the value") from None


def _parse(text: str) -> object:
    """JSON in which no key is given twice and every number is one; ValueError says what is not so."""
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is given twice, so that one value would be lost")
    return values


def to_json(config: object) -> dict:
    """The resolved config as plain JSON values; `build_config` reads it back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _build(cls: type, values: object, path: str) -> object:
    if not isinstance(values, dict):
        raise ValueError(f"{path or 'config'} is {values!r}, not an object with settings; write {{...}}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            raise ValueError(
                f"unknown key {_join(path, key)!r}: it would have no effect; {_what_was_meant(key, known)}"
            )
    required = [name for name, f in known.items() if _has_no_default(f) and name not in values]
    if required:
        raise ValueError(f"{_join(path, required[0])!r} is missing and has no default: set it")
    hints = typing.get_type_hints(cls)
    return cls(**{key: _convert(value, hints[key], _join(path, key)) for key, value in values.items()})


ALIASES = {
    "lr": "train.learning_rate",
    "max_lr": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "n_epochs": "train.epochs",
    "num_train_steps": "train.max_steps",
    "max_train_steps": "train.max_steps",
    "total_steps": "train.max_steps",
    "steps": "train.max_steps",
    "per_device_train_batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "micro_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size",
    "per_device_eval_batch_size": "eval.batch_size",
    "eval_batch_size": "eval.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "gradient_accumulation": "train.accumulation",
    "grad_accumulation": "train.accumulation",
    "accumulate_grad_batches": "train.accumulation",
    "global_batch_size": "train.batch_size * train.accumulation * number of ranks",
    "gradient_clipping": "train.max_grad_norm",
    "grad_clip": "train.max_grad_norm",
    "max_norm": "train.max_grad_norm",
    "warmup_ratio": "train.warmup_fraction",
    "warmup_steps": "train.warmup_fraction, a share of all steps",
    "lr_scheduler_type": "none: the schedule is warm-up and cosine (train.warmup_fraction, train.min_lr_fraction)",
    "lr_scheduler": "none: the schedule is warm-up and cosine (train.warmup_fraction, train.min_lr_fraction)",
    "min_lr": "train.min_lr_fraction, a share of train.learning_rate",
    "adam_beta1": "train.betas",
    "adam_beta2": "train.betas",
    "beta1": "train.betas",
    "beta2": "train.betas",
    "optim": "none: the optimizer is AdamW",
    "optimizer": "none: the optimizer is AdamW",
    "logging_steps": "train.log_every",
    "log_interval": "train.log_every",
    "save_steps": "train.save_every",
    "save_interval": "train.save_every",
    "eval_steps": "train.eval_every",
    "eval_interval": "train.eval_every",
    "save_total_limit": "train.keep_checkpoints",
    "early_stopping_patience": "train.patience",
    "resume_from_checkpoint": "the option --resume",
    "overwrite_output_dir": "the option --overwrite",
    "deepspeed": "train.zero_stage (0 to 3), with train.cpu_offload",
    "zero": "train.zero_stage",
    "fsdp": "none: weights are sharded by train.zero_stage=3",
    "offload": "train.cpu_offload",
    "packing": "train.pack_tokens",
    "output_dir": "runs_dir and name",
    "run_name": "name",
    "logging_dir": "runs_dir and name; TensorBoard's files are in runs_dir/name/tensorboard",
    "report_to": "none: TensorBoard and metrics.jsonl are always written",
    "model_name_or_path": "model.path",
    "model_name": "model.path",
    "model_id": "model.path",
    "base_model": "model.path",
    "pretrained_model_name_or_path": "model.path",
    "bf16": "model.autocast (true is bfloat16), and model.dtype for frozen weights",
    "fp16": "none: precision is model.autocast (true is bfloat16; float16 overflows in this model) and model.dtype",
    "mixed_precision": "model.autocast (true is bfloat16)",
    "torch_dtype": "model.dtype",
    "precision": "model.autocast and model.dtype",
    "load_in_4bit": "model.method=qlora",
    "quantization": "model.method=qlora",
    "bnb_4bit_quant_type": "model.method=qlora, which is NF4",
    "load_in_8bit": "none: weights are in 4 bit with model.method=qlora, else whole",
    "use_lora": "model.method=lora, qlora or full",
    "finetuning_type": "model.method",
    "use_peft": "model.method=lora, qlora or full",
    "lora_r": "model.lora_rank",
    "r": "model.lora_rank",
    "rank": "model.lora_rank",
    "alpha": "model.lora_alpha",
    "lora_target": "model.lora_targets",
    "target_modules": "model.lora_targets",
    "lora_target_modules": "model.lora_targets",
    "modules_to_save": "none: adapters alone are trained; whole weights with model.method=full",
    "freeze_vision_tower": "model.train_vision, or model.lora_places for adapters there",
    "freeze_vision": "model.train_vision, or model.lora_places for adapters there",
    "freeze_vit": "model.train_vision, or model.lora_places for adapters there",
    "attn_implementation": "model.attention",
    "flash_attn": "model.attention=flash_attention_2",
    "use_flash_attention_2": "model.attention=flash_attention_2",
    "use_flash_attn": "model.attention=flash_attention_2",
    "torch_compile": "model.compile",
    "max_seq_length": "vision.max_row_tokens",
    "max_seq_len": "vision.max_row_tokens",
    "max_length": "vision.max_row_tokens",
    "cutoff_len": "vision.max_row_tokens",
    "model_max_length": "vision.max_row_tokens",
    "sequence_len": "vision.max_row_tokens",
    "max_pixels": "vision.max_tokens_per_image, in tokens of 32 x 32 px",
    "min_pixels": "vision.min_tokens_per_image, in tokens of 32 x 32 px",
    "image_max_pixels": "vision.max_tokens_per_image, in tokens of 32 x 32 px",
    "dataset": "data.sources",
    "datasets": "data.sources",
    "data_path": "data.sources",
    "dataset_name": "data.sources",
    "train_file": "data.sources",
    "type": "data.sources[].kind",
    "dataset_type": "data.sources[].kind",
    "file_name": "data.sources[].path",
    "val_size": "data.eval_fraction",
    "test_size": "data.eval_fraction",
    "dataloader_num_workers": "data.num_workers",
    "workers": "data.num_workers",
    "dataloader_pin_memory": "none: memory is pinned where there is a GPU",
    "template": "none: the model's own chat template is used; prompt.format says how turns are written",
    "random_state": "train.seed",
    "data_seed": "data.seed",
    "max_tokens": "eval.max_new_tokens for answers, vision.max_row_tokens for rows",
    "do_sample": "eval.temperature (0: greedy)",
}
"""What other trainers call a setting, and which one it is here."""


def _what_was_meant(key: str, known: Sequence[str]) -> str:
    """The remedy for an unknown key: our name for it, its place, the nearest key if one is near, else all of them."""
    plain = key.strip().lower().replace("-", "_")
    if plain in ALIASES:
        return f"here it is {ALIASES[plain]}" if not ALIASES[plain].startswith("none") else ALIASES[plain][6:]
    elsewhere = [path for path in _paths(Config) if path.rpartition(".")[2] == plain]
    if elsewhere:
        return f"its place is {' or '.join(elsewhere)}"
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
    if near:
        return f"nearest known key: {near[0]!r}"
    names = {path.rpartition(".")[2]: path for path in _paths(Config)}
    near = difflib.get_close_matches(plain, [*names, *ALIASES], n=1, cutoff=0.8)
    if near and near[0] in names:
        return f"nearest known key: {names[near[0]]!r}"
    return f"known keys here: {', '.join(known)}"


def _paths(cls: type, path: str = "") -> list[str]:
    """The dotted paths of all settings and of their groups."""
    paths = []
    for name, hint in typing.get_type_hints(cls).items():
        paths.append(_join(path, name))
        if dataclasses.is_dataclass(hint):
            paths += _paths(hint, _join(path, name))
        elif hint == tuple[SourceConfig, ...]:
            paths += _paths(SourceConfig, f"{_join(path, name)}[]")
    return paths


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
        return float(value) if abs(value) < 2**1000 else math.inf if value > 0 else -math.inf
    kinds = args if isinstance(hint, types.UnionType) else (hint,)
    if type(value) in kinds and type(value) in (bool, int, float, str, dict):
        return value
    name = hint.__name__ if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) else str(hint)
    raise ValueError(f"{path} is {value!r}, which is not of type {name}; correct the value")
