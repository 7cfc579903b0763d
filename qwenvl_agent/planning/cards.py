"""What fits which card, as a table: the plans of one config for several models, methods and cards. Nothing here is measured.

Tokens a second are arithmetic: the model's operations at `SHARE` of the card's published rate.
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
    "as few layers again as needed": "model.gradient_checkpointing=auto",
    "all layers again": "model.gradient_checkpointing=true",
    "none again": "model.gradient_checkpointing=false",
}
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
            for option, override in OPTIONS.items():
                change = Change((f"model.path={path}", f"model.method={method}", "train.zero_stage=0", override), "")
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
    """At SHARE of the card's rate, what is computed again included. Unpacking of 4-bit weights is not."""
    pictures = [row.image_tokens * arch.merge**2 // max(1, row.num_images)] * row.num_images
    flops = step_flops(config.model, arch, [row.tokens], row.supervised, pictures)
    attention = 4 * arch.full_layers * arch.q * row.tokens**2
    forward = (2 * row.tokens * arch.active_matrices + attention) / arch.layers  # of one layer
    flops += config.model.recomputed(arch.layers) * forward
    return SHARE * card.tflops * 1e12 * row.tokens / flops


def table(found: Sequence[Verdict]) -> list[list[str]]:
    """A heading, then a line for each model, method and option with a cell for each card."""
    lines = [["model", "method", "gradient checkpointing", *(f"{card.gb} GB ({card.name})" for card in CARDS)]]
    for start in range(0, len(found), len(CARDS)):
        first = found[start]
        name = first.model.removeprefix("Qwen/Qwen3-VL-").removesuffix("-Instruct")
        lines.append([name, first.method, first.option, *map(cell, found[start : start + len(CARDS)])])
    return lines


def cell(verdict: Verdict) -> str:
    """`7.9 GiB, 12/28 again, 4,100/s`, or what it would take."""
    peak = f"{verdict.peak_bytes / GIB:.1f} GiB"
    if not verdict.fits:
        return f"no ({peak})"
    return f"{peak}, {verdict.recomputed}/{verdict.layers} again, {verdict.predicted_tokens_per_s:,.0f}/s"
