"""Single operations of a training step at a checkpoint's own widths, forward and backward: what is worth another kernel.

    python benchmarks/operators.py                                      # at Qwen3-VL-2B's widths, 8 rows of 900 tokens
    python benchmarks/operators.py --model Qwen/Qwen3-VL-8B-Instruct --rows 4 --json

Milliseconds are medians by the clock, until the device is done; what this machine has not got is left out and named. The
ceilings say how near an operation is: products at their best rate, bytes at a copy's, launches of nothing.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent))

from qwenvl_agent.families import Architecture
from qwenvl_agent.model.attention import attend, pack_inputs
from qwenvl_agent.model.kernels import Head
from qwenvl_agent.planning.vram import find_architecture
from qwenvl_agent.training.profile import matmul_flops

SHARED_SHARE = 0.5
"""Of a row's tokens, that all rows of a pack begin with."""
SUPERVISED_SHARE = 0.17


@dataclass(frozen=True)
class Sizes:
    arch: Architecture
    rows: int
    tokens: int
    """Of a row."""
    device: torch.device
    dtype: torch.dtype = torch.bfloat16

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype).requires_grad_()


class NotHereError(Exception):
    """An operation that this machine has not got; the message says what for."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen3-VL-2B-Instruct", help="whose widths (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="of a micro-batch (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=900, help="of a row (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    sizes = Sizes(find_architecture(args.model), args.rows, args.tokens, torch.device(args.device))
    figures = dict(measure(sizes, args.repeats))
    print(json.dumps(figures) if args.json else describe(figures))
    return 0


def measure(sizes: Sizes, repeats: int) -> Iterator[tuple[str, float | str]]:
    """(name, milliseconds or, of a ceiling, its rate; or why it is not measured)"""
    yield from ceilings(sizes.device, repeats)
    for name, build in OPERATIONS.items():
        try:
            yield name, milliseconds(build(sizes), sizes.device, repeats)
        except NotHereError as error:
            yield name, str(error)
        if sizes.device.type == "cuda":
            torch.cuda.empty_cache()


def milliseconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    def once() -> float:
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        return 1e3 * (time.perf_counter() - started)

    for _ in range(min(3, repeats)):
        once()
    return statistics.median(once() for _ in range(repeats))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(device: torch.device, repeats: int) -> Iterator[tuple[str, float]]:
    is_cuda = device.type == "cuda"
    yield "product, TFLOP/s", matmul_flops(device, torch.bfloat16, repeats) / 1e12
    block = torch.zeros(2**30 if is_cuda else 2**22, dtype=torch.uint8, device=device)
    yield "copy, GB/s", 2 * block.numel() / milliseconds(block.clone, device, repeats) / 1e6
    one = torch.zeros(8, device=device)
    yield "1,000 launches, ms", milliseconds(lambda: [one.add_(1) for _ in range(1000)], device, repeats)


# operations: each gives what runs forward and backward once


def both(forward: Callable[[], torch.Tensor], *inputs: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        for tensor in inputs:
            tensor.grad = None
        output = forward()
        output.backward(torch.ones_like(output))

    return run


def states(sizes: Sizes, rows: int, tokens: int) -> list[torch.Tensor]:
    """Queries, keys and values (B, heads, T, head size)."""
    heads = (sizes.arch.heads, sizes.arch.kv_heads, sizes.arch.kv_heads)
    return [sizes.random(rows, num, tokens, sizes.arch.head_dim) for num in heads]


def padded_attention(sizes: Sizes) -> Callable[[], None]:
    query, key, value = states(sizes, sizes.rows, sizes.tokens)
    run = functional.scaled_dot_product_attention
    return both(lambda: run(query, key, value, is_causal=True, enable_gqa=True), query, key, value)


def masked_attention(sizes: Sizes) -> Callable[[], None]:
    """As rows with a padding mask would be: no flash kernel, keys and values for every head."""
    query, key, value = states(sizes, sizes.rows, sizes.tokens)
    mask = torch.ones(sizes.tokens, sizes.tokens, dtype=torch.bool, device=sizes.device).tril()
    mask, groups = mask.expand(sizes.rows, 1, -1, -1), sizes.arch.heads // sizes.arch.kv_heads

    def forward() -> torch.Tensor:
        keys, values = (states.repeat_interleave(groups, 1) for states in (key, value))
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)

    return both(forward, query, key, value)


def packed_attention(sizes: Sizes) -> Callable[[], None]:
    """The same rows in one pack, as the project attends on this device."""
    shared = int(SHARED_SHARE * sizes.tokens)
    counts = [shared, *[sizes.tokens - shared] * sizes.rows]
    segments = torch.arange(len(counts), device=sizes.device).repeat_interleave(
        torch.tensor(counts, device=sizes.device), output_size=sum(counts)
    )
    query, key, value = states(sizes, 1, sum(counts))
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = sizes.arch.heads // sizes.arch.kv_heads, True
    known = pack_inputs(segments[None], [counts], "sdpa")
    options = {"scaling": sizes.arch.head_dim**-0.5} | {k: v for k, v in known.items() if k != "attention_mask"}
    return both(lambda: attend(module, query, key, value, known["attention_mask"], **options)[0], query, key, value)


def norm_of(sizes: Sizes, is_fused: bool) -> Callable[[], None]:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

    width = sizes.arch.hidden
    x, norm = sizes.random(sizes.rows * sizes.tokens, width), Qwen3VLTextRMSNorm(width).to(sizes.device, sizes.dtype)
    return both(lambda: functional.rms_norm(x, (width,), norm.weight) if is_fused else norm(x), x)


def projection(sizes: Sizes) -> nn.Linear:
    layer = nn.Linear(sizes.arch.hidden, sizes.arch.intermediate, bias=False, device=sizes.device, dtype=sizes.dtype)
    return layer.requires_grad_(False)


def frozen_linear(sizes: Sizes) -> Callable[[], None]:
    x, layer = sizes.random(sizes.rows * sizes.tokens, sizes.arch.hidden), projection(sizes)
    return both(lambda: layer(x), x)


def adapted_linear(sizes: Sizes) -> Callable[[], None]:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=["0"])
    layer = inject_adapter_in_model(config, nn.Sequential(projection(sizes))).to(sizes.device).train()
    for name, parameter in layer.named_parameters():
        parameter.data = parameter.data.float() if "lora_" in name else parameter.data
    x = sizes.random(sizes.rows * sizes.tokens, sizes.arch.hidden)

    def forward() -> torch.Tensor:
        with torch.autocast(sizes.device.type, sizes.dtype, cache_enabled=False):
            return layer(x)

    return both(forward, x)


def unpack_4_bit(sizes: Sizes) -> Callable[[], None]:
    """Of one projection's weight, without a gradient."""
    from bitsandbytes import functional as bnb

    weight = projection(sizes).weight
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    return lambda: bnb.dequantize_4bit(packed, state)


def head_inputs(sizes: Sizes) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    num = max(1, int(SUPERVISED_SHARE * sizes.rows * sizes.tokens))
    head = nn.Linear(sizes.arch.hidden, sizes.arch.vocab, bias=False, device=sizes.device, dtype=sizes.dtype)
    targets = torch.randint(sizes.arch.vocab, (num,), device=sizes.device)
    return sizes.random(1, num, sizes.arch.hidden), head.requires_grad_(False), targets


def head_loss(sizes: Sizes) -> Callable[[], None]:
    hidden, head, targets = head_inputs(sizes)
    head.__class__, head.targets, head.places = Head, targets, torch.arange(len(targets), device=sizes.device)
    return both(lambda: head(hidden), hidden)


def whole_logits(sizes: Sizes) -> Callable[[], None]:
    hidden, head, targets = head_inputs(sizes)
    return both(lambda: functional.cross_entropy(head(hidden[0]).float(), targets, reduction="none"), hidden)


def ligers_loss(sizes: Sizes) -> Callable[[], None]:
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        raise NotHereError("not measured: liger-kernel is not installed") from None
    if sizes.device.type != "cuda":
        raise NotHereError("not measured: Liger's kernels are for GPUs")
    (hidden, head, targets), loss = head_inputs(sizes), LigerFusedLinearCrossEntropyLoss()
    return both(lambda: loss(head.weight, hidden[0], targets), hidden)


OPERATIONS: dict[str, Callable[[Sizes], Callable[[], object]]] = {
    "attention, padded rows": padded_attention,
    "attention, the same with a mask": masked_attention,
    "attention, the same rows in a pack": packed_attention,
    "RMSNorm": lambda sizes: norm_of(sizes, is_fused=False),
    "RMSNorm, torch's own": lambda sizes: norm_of(sizes, is_fused=True),
    "frozen projection": frozen_linear,
    "the same with LoRA": adapted_linear,
    "its weight out of 4 bit": unpack_4_bit,
    "head's loss": head_loss,
    "head's loss, all logits at once": whole_logits,
    "head's loss, Liger's": ligers_loss,
}


def describe(figures: dict[str, float | str]) -> str:
    lines = [f"| {name} | {value if isinstance(value, str) else f'{value:.3g}'} |" for name, value in figures.items()]
    return "\n".join(["| operation, forward and backward | ms |", "|---|---|", *lines])


if __name__ == "__main__":
    sys.exit(main())
