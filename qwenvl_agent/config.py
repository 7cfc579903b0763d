"""All settings of a run: nested dataclasses, read from JSON by `settings.build`. Standard library only.

A config file lists only what differs from the defaults here. Sweeps are made of overrides, not of more files. What needs
more than the settings themselves, the world's own keys and the suite against the data, is checked by
`evaluation.suites.check_suite`. docs/CONFIG.md and configs/schema.json are made from this file by
`python scripts/document_config.py`: every field has its meaning under it, and says in its type which values it may have.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

from qwenvl_agent.aliases import remedy
from qwenvl_agent.settings import Range, build, check_values, list_settings, read_values, to_json

__all__ = ["Config", "build_config", "load_config", "to_json"]

FormatName = Literal["plain", "native", "hybrid", "no_thought", "think"]
FORMAT_NAMES = get_args(FormatName)
AskForThought = bool | Literal["auto"]
Tracker = Literal["tensorboard", "trackio", "wandb"]
Place = Literal["language", "experts", "merger", "vision"]
LORA_PLACES = get_args(Place)
LANGUAGE_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LINEAR_PROJECTIONS = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
"""Of linear attention, where a model has it."""
ALMOST_ONE = 0.9999
TINY = 1e-12
MAX_SEED = 2**31 - 1
"""numpy's seeds have 32 bits, and a rank's is the run's and its own number."""
Seed = Annotated[int, Range(0, MAX_SEED, "random numbers could not be drawn from it")]
Share = Annotated[float, Range(0, 1, "it is a share")]


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
    """Hub id, local folder, or tiny or tiny_screens, which the package ships."""
    init_from: str = ""
    """A run of the same base (runs/NAME, its best checkpoint, else its last) or one of its checkpoints: training begins with
    its weights and a new optimizer; empty: with the base's."""
    init_mode: Literal["continue", "merge"] = "continue"
    """continue: the run's adapter, or its weights of method full, train further; merge: they become this run's base, a
    bfloat16 copy in runs/NAME/base, under new adapters."""
    method: Literal["full", "lora", "qlora"] = "qlora"
    """qlora: the language model in NF4 with double quantisation, all else as lora."""
    lora_rank: Annotated[int, Range(1, 4096, "no matrix of the model could be changed by that rank")] = 16
    """Of each adapter's two matrices."""
    lora_alpha: Annotated[int, Range(1, 65536, "adapters are scaled by lora_alpha / lora_rank")] = 32
    """Adapters are scaled by lora_alpha / lora_rank."""
    lora_dropout: Annotated[float, Range(0, ALMOST_ONE, "adapters would see nothing")] = 0.05
    """Share of an adapter's inputs that is dropped in training."""
    lora_targets: tuple[str, ...] = LANGUAGE_PROJECTIONS
    """Projections of the language model that get an adapter: some of the default, which is all that the model has (where
    experts are in the MLP's place, those of the attention; with linear attention in_proj_qkv, in_proj_z, in_proj_b,
    in_proj_a and out_proj too)."""
    lora_places: tuple[Place, ...] = ("language",)
    """Where adapters are: language, experts (of a mixture; needs lora_dropout 0), merger (of patches into tokens,
    deepstack's too), vision (the tower's blocks)."""
    train_vision: bool = False
    """Train the vision tower and its mergers too (method full only). Frozen without adapters, they run without autograd."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the frozen weights; auto: bfloat16 under autocast, else float32. Trained weights are float32 masters."""
    autocast: bool | Literal["auto"] = "auto"
    """bfloat16 autocast in forward and backward; auto: where the device multiplies bfloat16 fast
    (precision.py). A run's config.json has what was chosen."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """auto: sdpa on CUDA (its flash kernel, for no row has a mask), eager on a CPU. flash_attention_2 needs the package
    flash-attn."""
    gradient_checkpointing: bool | Literal["auto"] | int = "auto"
    """Compute activations again in backward instead of keeping them: less memory for up to one more forward. true: in all
    layers; a number: in so many of the language model's first layers (and in the tower's, if they train); auto: in as few
    as the planned memory needs on this GPU, in all where there is none. The run says what was chosen and why."""
    compile: bool = False
    """Compile the language model's blocks for training. Needs a C++ compiler on a CPU, a C compiler and Python's
    headers on a GPU; evaluation runs uncompiled."""

    def __post_init__(self) -> None:
        check_values(self, "model")
        again = self.gradient_checkpointing
        if again != "auto" and (isinstance(again, str) or again < 0):
            raise ValueError(
                f"model.gradient_checkpointing is {again!r}: no layers are meant by it; use true, false, auto or a number of "
                "the language model's layers"
            )
        if self.init_mode == "merge" and not self.init_from:
            raise ValueError(
                "model.init_mode is 'merge' and model.init_from empty: there is no run to merge; name one, or leave it out"
            )
        if self.train_vision and self.method != "full":
            raise ValueError(
                f"model.train_vision is true with model.method {self.method!r}: the vision tower would "
                'train alone in full; use model.method=full, or model.lora_places=["language", "merger", "vision"]'
            )
        check_targets(self.lora_targets)
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

        self._check_experts()

    def _check_experts(self) -> None:
        """peft adds what an adapter learned to all experts of a layer before they see their inputs."""
        if "experts" not in self.lora_places:
            return
        if self.lora_dropout:
            raise ValueError(
                f"model.lora_places has experts with model.lora_dropout {self.lora_dropout}: inputs of experts' adapters "
                "cannot be dropped; set model.lora_dropout=0"
            )
        if self.method == "qlora":
            raise ValueError(
                "model.lora_places has experts with model.method 'qlora': adapters cannot be added to experts in 4 bit; "
                "use model.method=lora with train.zero_stage=3 on several GPUs, or leave experts out"
            )

    def targets_among(self, projections: Sequence[str]) -> tuple[str, ...]:
        """The model's own projections that get an adapter; ValueError for one of `lora_targets` that it has not."""
        if self.lora_targets == LANGUAGE_PROJECTIONS:
            return tuple(projections)
        missing = [target for target in self.lora_targets if target not in projections]
        if missing:
            raise ValueError(
                f"model.lora_targets names {missing[0]!r}, and the language layers of {self.path!r} have only "
                f"{', '.join(projections)}: no adapter would be there; leave it out (for the experts of a mixture: "
                'model.lora_places=["language", "experts"])'
            )
        return self.lora_targets

    def check_places(self, has_experts: bool) -> None:
        if "experts" in self.lora_places and not has_experts:
            raise ValueError(
                f"model.lora_places has experts and {self.path!r} is no mixture of experts: there would be no adapter; "
                "leave them out"
            )

    @property
    def is_automatic(self) -> bool:
        """Whether the device has a say in the precision."""
        return "auto" in (self.autocast, self.dtype)

    def resolved(self, is_fast: bool) -> "ModelConfig":
        """Without an "auto", on a device that multiplies bfloat16 fast or does not."""
        autocast = is_fast if self.autocast == "auto" else self.autocast
        following: Literal["bfloat16", "float32"] = "bfloat16" if autocast else "float32"
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

    def recomputed(self, num_layers: int) -> int:
        """How many of the language model's `num_layers`, the first ones, are computed again; all while it says auto."""
        again = self.gradient_checkpointing
        return min(again, num_layers) if type(again) is int else num_layers * bool(again)

    @property
    def vision_has_gradient(self) -> bool:
        """Whether anything of the vision tower or its mergers trains."""
        return self.train_vision or bool({"merger", "vision"} & set(self.lora_places))


def check_targets(targets: Sequence[str]) -> None:
    """ValueError unless each is a projection of the language model, named once."""
    for target in targets:
        if target not in (*LANGUAGE_PROJECTIONS, *LINEAR_PROJECTIONS):
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
    """A file of JSON lines, a JSON list or Parquet; a pattern (data/train-*.parquet) or a folder: docs/DATA.md, Files."""
    kind: Literal["safari", "recorded", "chat", "computer"] = "safari"
    """recorded: turns of any world, with the tools beside them; safari: the same, tools and missing thoughts being the
    safari's; chat: messages, images, tools; computer: screenshot and action (docs/DATA.md)."""
    world: str = ""
    """Of kind recorded: the world, by name or as path/to/file.py:make_world, whose tools these are and who reads them if
    it has a reader; empty: the tools stand beside the file."""
    unit: Literal["", "px", "fraction", "percent", "thousand"] = ""
    """Of kind computer: what its places are in; empty: px, as long as nothing in the file speaks against it. fraction: 0 to
    1 across the picture; thousand: the model's own 0 to 1000."""
    box_unit: Literal["", "px", "fraction", "percent", "thousand"] = ""
    """Of kind computer: what its boxes are in; empty: in `unit`."""
    box_order: Literal["", "xyxy", "xywh"] = ""
    """Of kind computer: whether the numbers of a box are two corners (xyxy; so if empty) or one and the size (xywh)."""
    weight: Annotated[float, Range(1e-6, 1e6, "rows are drawn by it; a source that is not wanted is left out")] = 1.0
    """Share of rows drawn from this source, relative to the other sources' weights."""

    def __post_init__(self) -> None:
        check_values(self, "data.sources[]")
        if self.world and self.kind != "recorded":
            raise ValueError(
                f"data.sources[].world is {self.world!r} and kind {self.kind}: no world is asked about it; leave it out, or "
                "use kind recorded"
            )
        for name in ("unit", "box_unit", "box_order"):
            if getattr(self, name) and self.kind != "computer":
                raise ValueError(
                    f"data.sources[].{name} is {getattr(self, name)!r} and kind {self.kind}: only places of kind computer are "
                    "read by it; leave it out, or use kind computer"
                )


KINDS_WITH_OWN_PROMPTS = ("chat",)
"""Those whose rows have the system prompt that a user wrote, to be learned as a server would get it."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    sources: tuple[SourceConfig, ...] = ()
    """Files of rows, mixed by their weights."""
    cache_dir: str = "cache"
    """Arrow files, keyed by the source files' hash; the reject report lies beside them."""
    eval_fraction: Annotated[float, Range(0, ALMOST_ONE, "it is a share, and rows must be left to train on")] = 0.05
    """Share of episodes held out for the offline step metrics; the split is by episode."""
    seed: Seed = 0
    """Of the split and of the order of rows."""
    max_thought_chars: Annotated[int, Range(0, 10**6, "no thought has that length")] = 400
    """A recorded thought longer than this is replaced by a derived one."""
    max_rejected: Share = 0.1
    """Share of a source's records that may be rejected; a training on less of it ends at its start, with counts and places."""
    check_pictures: Literal["auto", "header", "whole"] = "auto"
    """When the file is read: header (size and kind, microseconds), whole (decode each picture once; its cost is in
    docs/DATA.md), auto (whole for files of up to 2,000 lines)."""
    on_unusable_row: Literal["error", "skip"] = "error"
    """A row that turns out unusable in a step (its picture was deleted or damaged meanwhile) is an error, or skipped: the
    next usable row takes its place; named on stderr, counted as train/skipped_rows."""
    num_workers: Annotated[int, Range(0, 1024, "rows are made in so many processes; 0: in the trainer's own")] = 2
    """Processes of a rank that make rows; 0: the trainer's own."""

    def __post_init__(self) -> None:
        check_values(self, "data")


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    format: FormatName = "native"
    """How a turn is written: docs/DATA.md shows one in each."""
    history_steps: Annotated[int, Range(0, 10_000, "no prompt has so many earlier steps")] = 0
    """Steps before the current one that the prompt shows. The safari agent's memory is its notepad: 0."""
    supervise_history: bool = False
    """Also learn the turns in the history."""
    ask_for_thought: AskForThought = "auto"
    """After the system prompt ask for a thought in the format's words. auto: in kinds whose prompts are this package's or a
    world's, not in kind chat, whose prompts are your own; a run whose sources are all of one sort is played likewise."""

    def __post_init__(self) -> None:
        check_values(self, "prompt")
        if self.format == "think" and self.supervise_history:
            raise ValueError(
                "prompt.supervise_history is true with prompt.format 'think': earlier turns stand in the prompt without "
                "their thoughts, and learning them would teach not to think; set prompt.supervise_history=false"
            )


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    max_tokens_per_image: Annotated[int, Range(1, 2**20, "no picture takes so many tokens")] = 1024
    """Larger pictures are reduced to it."""
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
    reduce: Literal["drop_images", "drop_turns", "error"] = "drop_images"
    """Over budget: drop_images (the oldest whole pictures of the history), drop_turns (the oldest whole steps of the
    history), error."""

    def __post_init__(self) -> None:
        check_values(self, "vision")
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
    """Passes over the rows, if max_steps is 0."""
    extra_steps: Annotated[int, Range(0, 10**9, "no run takes so many steps")] = 0
    """Optimizer steps after those, at the learning rate where the schedule ends; a stage's gate asks for them."""
    batch_size: Annotated[int, Range(1, 65536, "a step takes so many rows at once")] = 2
    """Rows of one micro-batch on one rank."""
    accumulation: Annotated[int, Range(1, 65536, "a step takes so many micro-batches")] = 4
    """Micro-batches of one optimizer step on one rank."""
    pack_tokens: Annotated[int, Range(0, 2**24, "no pack has that length")] = 0
    """Lay a micro-batch's rows in packs of about so many tokens, what they begin with once; 0: a padded row each. Needs
    model.attention sdpa or eager."""
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    """paged_adamw_8bit: bitsandbytes' AdamW, which keeps the averages of matrices in 8 bits and, on a GPU, moves them to the
    host's memory where the GPU's is full: a quarter of the state's memory, for steps that wait for the GPU. Needs
    train.zero_stage 0."""
    learning_rate: Annotated[float, Range(0, 1, "the loss would climb")] = 2e-4
    """AdamW's, after the warm-up."""
    weight_decay: Annotated[float, Range(0, 1, "weights would grow or vanish")] = 0.0
    """AdamW's, of matrices; norms, biases and embeddings have none."""
    warmup_fraction: Share = 0.03
    """Share of all steps in which the learning rate rises from 0."""
    min_lr_fraction: Share = 0.1
    """The cosine ends at this share of learning_rate."""
    betas: Annotated[tuple[float, float], Range(0, ALMOST_ONE, "AdamW's averages would not follow the gradients")] = (
        0.9,
        0.95,
    )
    """AdamW's."""
    max_grad_norm: Annotated[float, Range(TINY, 1e12, "gradients are cut to that norm; 1e9 leaves them whole")] = 1.0
    """Gradients are cut to this norm; 1e9 leaves them whole."""
    on_bad_step: Literal["stop", "skip"] = "stop"
    """What comes of a step whose loss or gradient is not finite, whose tokens all weigh 0, or whose loss spikes. stop: the
    run ends at its next log line and names the rows. skip: nothing is learned from it, its rows are named and counted, and
    the run goes on; ten in a row end it. Each step then waits for the device."""
    spike_factor: Annotated[float, Range(0, 1e6, "no loss is that many times another")] = 0.0
    """A micro-batch whose mean loss is over so many times the mean of the last ones (about 50) makes a bad step; 0: none does."""
    weight_thought: Annotated[float, Range(0, 1e4, "tokens are weighted by it")] = 1.0
    """Loss weight of a thought token."""
    weight_call: Annotated[float, Range(0, 1e4, "tokens are weighted by it")] = 1.0
    """Loss weight of a tool-call token, and of free text."""
    seed: Seed = 0
    """Of new weights and of dropout."""
    log_every: Annotated[int, Range(1, 10**9, "nothing would be logged")] = 10
    """Optimizer steps between log lines."""
    save_every: Annotated[int, Range(1, 10**9, "nothing would be saved on the way")] = 500
    """Optimizer steps between checkpoints; each evaluation saves one too."""
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
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Where figures go besides metrics.jsonl: tensorboard (with pictures and transcripts), trackio, wandb; [] for none."""
    tracker_project: str = "qwenvl-agent"
    """The project of trackio and wandb; the run's name there is `name`."""

    def __post_init__(self) -> None:
        check_values(self, "train")
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"train.trackers is {list(self.trackers)}: each is written once; name each once")
        if self.patience and not self.eval_every:
            raise ValueError(
                f"train.patience is {self.patience} and train.eval_every is 0: there is no evaluation before the end, "
                "so nothing would end earlier; set train.eval_every"
            )
        if 0 < self.spike_factor <= 1:
            raise ValueError(
                f"train.spike_factor is {self.spike_factor}: losses as usual would be spikes; use more than 1, such as 5, or 0"
            )
        if self.optimizer != "adamw" and self.zero_stage:
            raise ValueError(
                f"train.optimizer is {self.optimizer!r} with train.zero_stage {self.zero_stage}: DeepSpeed cuts the averages "
                "into slices of its own, which have no blocks of 8 bits; set train.optimizer=adamw (train.cpu_offload=true "
                "keeps them in the host's memory), or train.zero_stage=0"
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
    """Besides the offline steps: a world to play in, by name (safari, browser, one of an installed package) or as
    path/to/file.py:make_world; clicks (held-out screens); or none."""
    world: dict = field(default_factory=dict)
    """Settings of the world, checked by the world itself; those of ours are in docs/CONFIG.md."""
    episodes: Annotated[int, Range(0, 1_000_000, "so many are played")] = 32
    """Closed-loop episodes, or screens, of an evaluation inside training, on seeds of their own; 0: none."""
    step_rows: Annotated[int, Range(0, 10**9, "there are no such rows")] = 256
    """Held-out rows of the offline step metrics; 0: none."""
    batch_size: Annotated[int, Range(1, 65536, "so many are answered at once")] = 32
    """Answers made at once."""
    max_new_tokens: Annotated[int, Range(1, 2**20, "no answer has that length")] = 512
    """Of one answer; a longer one is cut off and counted."""
    max_thought_tokens: Annotated[int, Range(0, 2**20, "no thought has that length")] = 0
    """Of prompt.format think: a longer thought is ended there, and the answer counts the repair thought_cut; 0: no limit
    but max_new_tokens."""
    temperature: Annotated[float, Range(0, 100, "answers could not be drawn")] = 0.0
    """Of drawn answers; 0: greedy."""
    constrained: bool = False
    """Choose only among tokens that keep an answer to tools readable without repairs, with calls that fit the tools' schemas;
    of hybrid, the Action line may still name other calls than follow (`other_action_line`)."""
    time_limit_s: Annotated[float, Range(TINY, 1e9, "no step would be started in that time")] = 600.0
    """An evaluation inside training stops starting new steps after this; unfinished episodes count as failures."""

    def __post_init__(self) -> None:
        check_values(self, "eval")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    steps: Annotated[int, Range(0, 10_000, "the trace would not fit the memory")] = 0
    """Optimizer steps to profile, after three to warm up: RUN/profile/summary.md and trace.json.gz."""

    def __post_init__(self) -> None:
        check_values(self, "profile")


MAX_BOUND = 1e9
"""Of a gate's metric; no metric is beyond it."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    metric: str
    """A held-out measure of the stage's last run, by its name in metrics.jsonl: rollout/success_rate, eval/step_accuracy ..."""
    least: Annotated[float, Range(-MAX_BOUND, MAX_BOUND, "no metric is there")] = -MAX_BOUND
    """The gate is met from this value on ..."""
    most: Annotated[float, Range(-MAX_BOUND, MAX_BOUND, "no metric is there")] = MAX_BOUND
    """... up to this one."""
    more_steps: Annotated[int, Range(0, 10**9, "no run takes so many steps")] = 0
    """If it is not met: train so many optimizer steps more (train.extra_steps) and ask again; 0: do not."""
    times: Annotated[int, Range(1, 1000, "it is asked again so often")] = 1
    """How often at most."""
    otherwise: Literal["end", "go_on"] = "end"
    """If it is not met then: end, with status 3 and a message, or go on to the next stage, with a message."""

    def __post_init__(self) -> None:
        check_values(self, "stages[].gate")
        if (self.least, self.most) == (-MAX_BOUND, MAX_BOUND) or self.least > self.most:
            raise ValueError(
                f"stages[].gate of {self.metric} is met from {self.least:g} to {self.most:g}: nothing would be tested, or "
                "nothing could meet it; set least or most"
            )


@dataclass(frozen=True, kw_only=True)
class OwnStatesConfig:
    """The states to which the weights before a round come by themselves, each with the turn of the world's oracle (DAgger)."""

    episodes: Annotated[int, Range(1, 10**6, "so many are played")]
    """Of a round, in the stage's own world, on training seeds that neither its data nor an earlier round has."""
    rounds: Annotated[int, Range(1, 1000, "so many rounds are made")] = 1
    """Each is rollouts and a run of train.max_steps, or train.epochs, on the stage's sources and what was made until then."""
    weight: Annotated[float, Range(1e-6, 1e6, "rows are drawn by it")] = 1.0
    """Of all rounds' rows together, beside the weights of data.sources."""
    temperature: Annotated[float, Range(0, 100, "answers could not be drawn")] = 1.0
    """Of the answers in these rollouts."""
    oracle: dict = field(default_factory=dict)
    """Settings of the oracle: those that the stage's data was recorded with."""
    oracle_share: Share = 0.0
    """Share of turns that the oracle plays, besides those that it takes over (docs/WORLDS.md)."""
    keep_agreed: Share = 1.0
    """Share of the states kept in which the policy calls the very same as the oracle."""

    def __post_init__(self) -> None:
        check_values(self, "stages[].own_states")


@dataclass(frozen=True, kw_only=True)
class WonMissionsConfig:
    """The missions that the weights before a round win, with their own turns as labels (expert iteration)."""

    episodes: Annotated[int, Range(1, 10**6, "so many are played")]
    """Missions of a round, in the stage's own world, on training seeds that neither its data nor an earlier round has."""
    rounds: Annotated[int, Range(1, 1000, "so many rounds are made")] = 1
    """Each is rollouts and a run of train.max_steps, or train.epochs, on the stage's sources and what was made until then."""
    weight: Annotated[float, Range(1e-6, 1e6, "rows are drawn by it")] = 1.0
    """Of all rounds' rows together, beside the weights of data.sources."""
    temperature: Annotated[float, Range(0, 100, "answers could not be drawn")] = 1.0
    """Of the answers in these rollouts; at 0 all attempts of a mission are the same."""
    attempts: Annotated[int, Range(1, 1000, "nobody would try, or for ever")] = 4
    """Of each mission."""
    keep: Annotated[int, Range(1, 1000, "nothing would be kept")] = 1
    """Won attempts of a mission that are learned, the shortest first."""

    def __post_init__(self) -> None:
        check_values(self, "stages[].won_missions")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    name: str
    """Its run's folder: runs/NAME/STAGE."""
    set: dict = field(default_factory=dict)
    """What differs from the settings beside `stages`: nested as there, or by dotted keys, which replace what they name:
    {"train": {"max_steps": 200}, "data.sources": [...]}."""
    record: tuple[dict, ...] = ()
    """Datasets that are recorded first if they are not there: the options of `qwenvl-agent record`, as {"out":
    "data/safari", "episodes": 3000, "noise": 0.2, "oracle": {"max_path": 6}}; the world is the stage's own."""
    own_states: OwnStatesConfig | None = None
    """Rounds in which it learns in the states that it comes to by itself; null: none."""
    won_missions: WonMissionsConfig | None = None
    """Rounds in which it learns what it did where it won; null: none."""
    gate: GateConfig | None = None
    """What must hold before the next stage begins; null: nothing."""

    def __post_init__(self) -> None:
        check_values(self, "stages[]")
        check_name(self.name)


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str
    """Of the run: outputs go to runs_dir/name."""
    runs_dir: str = "runs"
    """Folder of all runs."""
    model: ModelConfig
    """Which model, and what of it is trained."""
    data: DataConfig = field(default_factory=DataConfig)
    """What is read."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """How a row is written."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """Budgets of pictures and rows."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Steps, optimizer, checkpoints."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """What an evaluation inside training plays."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """Where a step's time goes."""
    stages: tuple[StageConfig, ...] = ()
    """A curriculum: runs one after the other, each begun with the weights of the one before it (docs/CURRICULUM.md);
    empty: one run."""

    def __post_init__(self) -> None:
        check_values(self, "")
        check_name(self.name)
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages are named {', '.join(names)}: two would share a folder; give each its own name")
        if self.model.method == "qlora" and self.train.zero_stage == 3:
            raise ValueError(
                "train.zero_stage is 3 with model.method 'qlora': 4-bit weights cannot be sharded, every rank would "
                "hold the whole model; use zero_stage 2 or less, or model.method=lora"
            )
        if self.eval.max_thought_tokens and self.prompt.format != "think":
            raise ValueError(
                f"eval.max_thought_tokens is {self.eval.max_thought_tokens} with prompt.format {self.prompt.format!r}, whose "
                "thoughts have no end that could be written for them: it would have no effect; set it to 0, or "
                "prompt.format=think"
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


def settle_prompt(config: Config) -> Config:
    """Without "auto" in `prompt.ask_for_thought`, unless the sources are of both sorts, or there are none.

    What is played has no kind: it is asked as the run's rows are. A run keeps it whatever data it is evaluated on.
    """
    asked = {source.kind not in KINDS_WITH_OWN_PROMPTS for source in config.data.sources}
    if config.prompt.ask_for_thought != "auto" or len(asked) != 1:
        return config
    return dataclasses.replace(config, prompt=dataclasses.replace(config.prompt, ask_for_thought=asked.pop()))


SAVED_BEFORE: dict[str, dict[str, object]] = {"prompt": {"ask_for_thought": True}, "train": {"optimizer": "adamw"}}
"""Of a run that was saved before there was such a setting: what it did."""


def complete_saved(values: dict) -> dict:
    """The JSON of a run's config.json, with settings that did not exist when it was saved."""
    groups = {name: {**former, **values.get(name, {})} for name, former in SAVED_BEFORE.items()}
    return {**values, **groups}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a JSON config and apply `key.path=value` overrides."""
    return build_config(read_values(path, overrides))


def build_config(values: dict) -> Config:
    """A Config from plain JSON values; ValueError names the path of what is wrong."""
    return build(Config, values, remedy=partial(remedy, setting_paths()))


def setting_paths() -> list[str]:
    """The dotted paths of all settings and of their groups."""
    return [setting.path for setting in list_settings(Config)]
