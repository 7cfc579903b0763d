"""Attention within packs (data/packing.py): what a pack's mask hides is not computed.

Four rows of 1,060 tokens that begin with the same 500 are a pack of 2,740. Each row's own 560 tokens see those 500 and
themselves, so that a third of the pack's square is left.

    CUDA   one FlexAttention kernel for all packs: whole blocks of 128 x 128 are left out, by `pack_blocks`
    CPU    a call of sdpa for each row, by `pack_sizes`: FlexAttention has no backward there

B packs, T tokens.
"""

from functools import cache

import torch
from einops import rearrange
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

FLEX_DEVICES = {"cuda"}
"""Types of devices on which sdpa computes packs by FlexAttention."""
BLOCK = 128
"""Tokens along a side of what FlexAttention computes or leaves out as a whole."""


def pack_inputs(segments: torch.Tensor, pack_sizes: list[list[int]], attention: str) -> dict:
    """What tells a model that attends in the way `attention` who sees whom in packs."""
    if attention == "sdpa" and segments.device.type in FLEX_DEVICES:
        return {"attention_mask": pack_blocks(segments)}
    return {"attention_mask": pack_mask(segments), "pack_sizes": pack_sizes}


def pack_blocks(segments: torch.Tensor) -> BlockMask:
    """Who sees whom, as `pack_mask` says it, in blocks; nothing is read from the device.

    Segments (B, T) count up and padding comes last, so a block's first and last segment tell what is in it.
    """
    num_packs, num_tokens = segments.shape
    size = -(-num_tokens // BLOCK) * BLOCK
    last = num_tokens + 1  # later than any row: padding of the pack, then what fills up its last block
    ordered = nn.functional.pad(torch.where(segments < 0, last, segments), (0, size - num_tokens), value=last + 1)
    low, high = (ordered.view(num_packs, -1, BLOCK)[..., i] for i in (0, -1))  # (B, blocks)
    places = torch.arange(size // BLOCK, device=segments.device)
    is_earlier, is_same = places[:, None] > places, places[:, None] == places
    shares = (low == 0)[:, None] | (low[:, :, None] == high[:, None])
    all_shared = (high == 0)[:, None]
    one_row = (low == high)[:, :, None] & (low == high)[:, None] & (low[:, :, None] == low[:, None])
    is_full = is_earlier & (all_shared | one_row)
    is_partial = (is_earlier & shares | is_same) & ~is_full

    def is_seen(pack, head, query, key):
        in_row = segments[pack, query] == segments[pack, key]
        return (query >= key) & (in_row | (segments[pack, key] == 0))

    lengths = (num_tokens, num_tokens)
    return BlockMask.from_kv_blocks(
        *in_order(is_partial), *in_order(is_full), BLOCK_SIZE=BLOCK, mask_mod=is_seen, seq_lengths=lengths
    )


def in_order(is_used: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks each block of queries uses (B, 1, blocks), and which, these first (B, 1, blocks, blocks)."""
    order = is_used.int().argsort(dim=-1, descending=True, stable=True)
    return is_used.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]


@cache
def compiled_flex_attention():
    """Compiled twice: for the first number of blocks, then for any."""
    return torch.compile(flex_attention, dynamic=True)


def attend_blocks(module: nn.Module, query, key, value, blocks: BlockMask, scaling: float | None) -> torch.Tensor:
    """(B, heads, T, head size) to (B, T, heads, head size)."""
    device = query.device.type
    if torch.is_autocast_enabled(device):
        # As autocast does it for sdpa. Where norms train in float32 queries and keys are float32, and values are not, of
        # which FlexAttention makes no kernel.
        query, key, value = (states.to(torch.get_autocast_dtype(device)) for states in (query, key, value))
    # A block that is compiled whole (model.compile) compiles it too; on a CPU it is for tests alone.
    compiles = device == "cuda" and not torch.compiler.is_compiling()
    flex = compiled_flex_attention() if compiles else flex_attention
    output = flex(query, key, value, block_mask=blocks, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
    return output.transpose(1, 2).contiguous()


def pack_mask(segments: torch.Tensor) -> torch.Tensor:
    """(B, 1, T, T) float32, added to attention scores: a token sees what is before it of its own row and of segment 0."""
    num_tokens = segments.shape[1]
    is_before = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=segments.device).tril()
    is_seen = (segments[:, :, None] == segments[:, None, :]) | (segments == 0)[:, None, :]
    mask = torch.zeros(is_seen.shape, device=segments.device)
    return mask.masked_fill_(~(is_seen & is_before), torch.finfo(torch.float32).min)[:, None]


def attend(module: nn.Module, query, key, value, attention_mask, *, pack_sizes=None, **options):
    """transformers' sdpa, (B, heads, T, head size) to (B, T, heads, head size), row by row where there are packs.

    `pack_sizes` is passed to the model's forward: of each pack the tokens of its common beginning, then of its rows.
    """
    if isinstance(attention_mask, BlockMask):
        return attend_blocks(module, query, key, value, attention_mask, options.get("scaling")), None
    if pack_sizes is None or attention_mask is None:  # without a mask: the vision tower
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return _attend_packs(module, query, key, value, attention_mask, pack_sizes, **options), None


@torch.compiler.disable  # compiled blocks (model.compile) would be compiled anew for all sizes
def _attend_packs(module: nn.Module, query, key, value, mask, pack_sizes, **options) -> torch.Tensor:
    packs = zip(query, key, value, mask, pack_sizes, strict=True)
    return torch.cat([_attend_pack(module, *(x[None] for x in tensors), sizes, **options) for *tensors, sizes in packs])


def _attend_pack(module: nn.Module, query, key, value, mask, sizes: list[int], **options) -> torch.Tensor:
    """(1, T, heads, head size); zeros where the pack is filled up."""
    sizes = [*sizes, query.shape[2] - sum(sizes)]
    queries, keys, values, masks = (states.split(sizes, dim=2) for states in (query, key, value, mask))
    outputs = []
    for i, size in enumerate(sizes[:-1]):
        seen = [0, i] if i else [0]
        key, value = (torch.cat([parts[j] for j in seen], dim=2) for parts in (keys, values))
        columns = masks[i].split(sizes, dim=3)
        mask = torch.cat([columns[j] for j in seen], dim=3)
        if size:
            outputs.append(_attend_row(module, queries[i], key, value, mask, **options))
    return torch.cat([*outputs, torch.zeros_like(queries[-1]).transpose(1, 2)], dim=1)


def _attend_row(module: nn.Module, query, key, value, mask, scaling: float | None = None, **options) -> torch.Tensor:
    """(1, T, heads, head size)"""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled():
        return BatchedAttention.apply(query, key, value, mask, scaling).transpose(1, 2)
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **options)[0]


class BatchedAttention(torch.autograd.Function):
    """Attention as batched products, softmax in float32: on a CPU in bfloat16 torch's flash attention takes three times
    as long for its backward (2.14). In float32 it does not, and generating needs no backward.

    `query` is (1, heads, T, size), `key` and `value` are (1, groups, S, size), `mask` (1, 1, T, S) is added. Queries of a
    group stand behind one another, so that keys and values are not repeated.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling: float) -> torch.Tensor:
        keys, values = key[0], value[0]
        # Scaled here and not as scores, of which there are many more.
        queries = by_group(query * scaling, len(keys))
        scores = torch.bmm(queries, keys.transpose(1, 2))
        rearrange(scores, "g (h t) s -> g h t s", t=query.shape[2]).add_(mask.to(scores.dtype))
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.scaling = scaling
        return by_head(torch.bmm(weights, values), query.shape[2])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        queries, keys, values, weights = ctx.saved_tensors
        outputs = by_group(gradient, len(keys))
        for_weights = torch.bmm(outputs, values.transpose(1, 2))
        for_scores = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype)
        for_query = by_head(torch.bmm(for_scores, keys), gradient.shape[2]) * ctx.scaling
        for_key = _product_of_transposed(for_scores, queries)
        for_value = _product_of_transposed(weights, outputs)
        return for_query, for_key[None], for_value[None], None, None


def by_group(states: torch.Tensor, num_groups: int) -> torch.Tensor:
    return rearrange(states, "1 (g h) t size -> g (h t) size", g=num_groups)


def by_head(states: torch.Tensor, num_tokens: int) -> torch.Tensor:
    return rearrange(states, "g (h t) size -> 1 (g h) t size", t=num_tokens)


def _product_of_transposed(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left^T @ right, batched, for a `left` of far more columns: the other way round it is right that is transposed."""
    return torch.bmm(right.transpose(1, 2).contiguous(), left).transpose(1, 2)


# Under its own name: layers that are computed again in backward look it up then.
AttentionInterface.register("sdpa", attend)
