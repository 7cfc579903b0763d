"""What fits which card, as a table: the plans of one config for several models, methods and cards. Nothing here is measured.

Tokens a second are arithmetic: the model's operations at `SHARE` of the card's published rate, `COMPILED` times as many
with compiled blocks, and without those that packs save where rows begin with `SHARED_TOKENS` alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qwenvl_agent.config import Config
from qwenvl_agent.planning.flops import step_flops
from qwenvl_agent.planning.vram import (
    GIB,
    Architecture,
    Change,
    RowShape,
    choose_checkpointing,
    find_architecture,
    plan_memory,
)


@dataclass(frozen=True)
class Card:
    """`tflops`: dense bfloat16 with float32 accumulation, of NVIDIA's data sheets."""

    name: str
    gb: int
    tflops: float


CARDS = (
    Card("RTX 4070 Ti", 12, 80.2),
    Card("RTX 4080", 16, 97.5),
    Card("RTX 4090", 24, 165.2),
    Card("A100", 40, 311.9),
    Card("H100", 80, 989.4),
)
SHARE = 0.35
"""Of a card's rate that training is assumed to reach; published figures of others lie between 0.33 and 0.39."""
MODELS = ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct")
OPTIONS = {
    "as few layers again as needed": ("model.gradient_checkpointing=auto",),
    "all layers again": ("model.gradient_checkpointing=true",),
    "none again": ("model.gradient_checkpointing=false",),
    "as few, 8-bit AdamW": ("model.gradient_checkpointing=auto", "train.optimizer=paged_adamw_8bit"),
    "as few, packs": ("model.gradient_checkpointing=auto", "train.pack_tokens=8192", "model.attention=sdpa"),
    "as few, compiled": ("model.gradient_checkpointing=auto", "model.compile=true"),
}
COMPILED = 6667 / 5762
"""What compiled blocks are assumed to win: torchtitan's published rates of 8B on an H100, with and without."""
SHARED_TOKENS = 500
"""That rows of one task are assumed to begin with: the safari's system prompt and tools. A pack computes them once."""
METHODS = ("qlora", "lora", "full")


@dataclass(frozen=True)
class Verdict:
    """Of one model, method and option on one card."""

    model: str
    method: str
    option: str
    card: Card
    fits: bool
    peak_bytes: int
    recomputed: int
    """Layers of the language model, of `layers`, that are computed again."""
    layers: int
    predicted_tokens_per_s: float


def verdicts(config: Config, row_of: Callable[[Config, Architecture], RowShape]) -> list[Verdict]:
    """Of all MODELS, METHODS, OPTIONS and CARDS, in that order; one card, without ZeRO."""
    alone = replace(config, train=replace(config.train, zero_stage=0, cpu_offload=False))
    found = []
    for path in MODELS:
        arch = find_architecture(path)
        for method in METHODS:
            for option, overrides in OPTIONS.items():
                change = Change((f"model.path={path}", f"model.method={method}", "train.zero_stage=0", *overrides), "")
                changed = change.apply(alone)
                found += [judge(changed, arch, row_of(changed, arch), option, card) for card in CARDS]
    return found


def judge(config: Config, arch: Architecture, row: RowShape, option: str, card: Card) -> Verdict:
    config, _ = choose_checkpointing(config, arch, row, 1, card.gb)
    plan = plan_memory(config, arch, row)
    again = config.model.recomputed(arch.layers)
    return Verdict(
        config.model.path,
        config.model.method,
        option,
        card,
        plan.fits(card.gb),
        plan.total,
        again,
        arch.layers,
        predicted_tokens_per_s(config, arch, row, card),
    )


def predicted_tokens_per_s(config: Config, arch: Architecture, row: RowShape, card: Card) -> float:
    """Of rows, shared tokens included, at SHARE of the card's rate. Unpacking of 4-bit weights and waits are not in it."""
    pictures = [row.image_tokens * arch.merge**2 // max(1, row.num_images)] * row.num_images
    num_rows = config.train.batch_size
    flops = num_rows * computed_flops(config, arch, row.tokens, row.supervised, pictures)
    if config.train.pack_tokens:
        shared = min(SHARED_TOKENS, row.tokens - row.image_tokens - row.supervised)
        flops -= (num_rows - 1) * computed_flops(config, arch, shared, 0, [])
    rate = SHARE * card.tflops * 1e12 * (COMPILED if config.model.compile else 1)
    return rate * num_rows * row.tokens / flops


def computed_flops(config: Config, arch: Architecture, tokens: int, supervised: int, pictures: Sequence[int]) -> float:
    """Of one row's forward and backward, what is computed again included."""
    flops = step_flops(config.model, arch, [tokens], supervised, pictures)
    attention = 4 * arch.full_layers * arch.q * tokens**2
    forward = (2 * tokens * arch.active_matrices + attention) / arch.layers  # of one layer
    return flops + config.model.recomputed(arch.layers) * forward


def table(found: Sequence[Verdict]) -> list[list[str]]:
    """A heading, then a line for each model, method and option with a cell for each card."""
    lines = [["model", "method", "layers and options", *(f"{card.gb} GB ({card.name})" for card in CARDS)]]
    for start in range(0, len(found), len(CARDS)):
        first = found[start]
        name = first.model.removeprefix("Qwen/Qwen3-VL-").removesuffix("-Instruct")
        lines.append([name, first.method, first.option, *map(cell, found[start : start + len(CARDS)])])
    return lines


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """`table` as docs/MEMORY.md has it."""
    heading, *lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([heading, "|---" * len(rows[0]) + "|", *lines])


def cell(verdict: Verdict) -> str:
    """`7.9 GiB, 12/28 again, 4,100/s`, or what it would take."""
    peak = f"{verdict.peak_bytes / GIB:.1f} GiB"
    if not verdict.fits:
        return f"no ({peak})"
    return f"{peak}, {verdict.recomputed}/{verdict.layers} again, {verdict.predicted_tokens_per_s:,.0f}/s"
