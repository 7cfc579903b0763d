"""Attention within packs (data/packing.py): what a pack's mask hides is not computed.

Four rows of 1,060 tokens that begin with the same 500 are a pack of 2,740. Each row's own 560 tokens see those 500 and
themselves, so that a third of the pack's square is left.
"""

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


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
    if pack_sizes is None or attention_mask is None:  # without a mask: the vision tower
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    packs = zip(query, key, value, attention_mask, pack_sizes, strict=True)
    outputs = [_attend_pack(module, *(part[None] for part in parts), sizes, **options) for *parts, sizes in packs]
    return torch.cat(outputs), None


def _attend_pack(module: nn.Module, query, key, value, mask, sizes: list[int], **options) -> torch.Tensor:
    """(1, T, heads, head size); zeros where the pack is filled up."""
    beginning, start, outputs = slice(0, sizes[0]), 0, []
    for i, size in enumerate(sizes):
        own = slice(start, start + size)
        seen = [beginning, own] if i else [own]
        block = [torch.cat([states[:, :, part] for part in seen], dim=2) for states in (key, value)]
        block_mask = torch.cat([mask[:, :, own, part] for part in seen], dim=3)
        if size:
            outputs.append(sdpa_attention_forward(module, query[:, :, own], *block, block_mask, **options)[0])
        start += size
    return nn.functional.pad(torch.cat(outputs, dim=1), (0, 0, 0, 0, 0, query.shape[2] - start))


# Under its own name: layers that are computed again in backward look it up then.
AttentionInterface.register("sdpa", attend)
