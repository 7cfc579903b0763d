"""Tokens from a batch of prompts: the loop of `generate`, without what a batch of agents pays for in it.

An agent's prompt is short, its batch is large, and its answers end at very different lengths. So here
- rows that have ended leave the batch (in `generate` they are computed on until the longest answer ends);
- keys and values grow in place (a DynamicCache copies all of them for each new token);
- the beginning that all prompts share, system prompt and tools, is computed once;
- weights that autocast would cast for every token are cast once.

Greedy answers are those of one-by-one `generate` (float32; in bfloat16 near-ties may fall otherwise in another batch).

Legend: B rows, T tokens.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer

from qwenvl_agent.inference.constraint import Constraint
from qwenvl_agent.inference.thought_budget import ThoughtBudget
from qwenvl_agent.model.build import base_of

TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids", "mm_token_type_ids")
LEAVE_BELOW = 0.75
"""Rows leave when no more than this share still writes: taking them out copies the others' keys and values."""


@torch.no_grad()
def decode(
    model: nn.Module,
    inputs: dict,
    *,
    end_id: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    constraint: Constraint | ThoughtBudget | None = None,
    draws: Sequence[int] | None = None,
) -> list[list[int]]:
    """The ids that each row of a left-padded batch writes, up to and with `end_id`, or `max_new_tokens` of them.

    Greedy at temperature 0, else sampled from the whole distribution with torch's random state; under a constraint,
    from what it allows. With `draws`, a number a row, each row is sampled by its own number: what it writes does not
    depend on the rows beside it, but for the last bits of the logits.
    """
    with cast_weights(model), forward_attention(model):
        written = _decode(model, inputs, end_id, max_new_tokens, temperature, constraint, draws)
    return [ids[: ids.index(end_id) + 1] if end_id in ids else ids for ids in written]


def _decode(
    model: nn.Module,
    inputs: dict,
    end_id: int,
    max_new_tokens: int,
    temperature: float,
    constraint: Constraint | ThoughtBudget | None,
    draws: Sequence[int] | None,
) -> list[list[int]]:
    """What `decode` gives, with what rows wrote after their end while the batch went on."""
    inputs, cache = share_prefix(model, inputs)
    mask, positions = inputs["attention_mask"], inputs["position_ids"][..., -1:]  # (B, T), (4, B, 1)
    rows = torch.arange(len(mask), device=mask.device)
    writes = torch.ones_like(rows, dtype=torch.bool)
    written: list[list[int]] = [[] for _ in rows]
    numbers = [random.Random(draw) for draw in draws or ()]
    logits = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]  # (B, V)
    while True:
        if constraint is not None:
            logits = constraint.masked(rows.tolist(), logits)
        ids = choose(logits, temperature, [numbers[row].random() for row in rows.tolist()] if draws else None)  # (B,)
        for row, token in zip(rows.tolist(), ids.tolist(), strict=True):
            written[row].append(token)
        if constraint is not None:
            constraint.advance(rows.tolist(), ids.tolist())
        writes &= ids != end_id
        if max(map(len, written)) == max_new_tokens or not writes.any():
            return written
        if writes.sum() <= LEAVE_BELOW * len(rows):
            kept = writes.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, ids, mask, positions, writes = rows[kept], ids[kept], mask[kept], positions[:, kept], writes[kept]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions + 1
        step = {"input_ids": ids[:, None], "attention_mask": mask, "position_ids": positions}
        logits = model(**step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]


def choose(logits: torch.Tensor, temperature: float, numbers: Sequence[float] | None = None) -> torch.Tensor:
    """(B,) next ids from (B, V); with B `numbers` in [0, 1) where each cuts its row's distribution, else at random."""
    if temperature == 0:
        return logits.argmax(-1)
    shares = (logits.float() / temperature).softmax(-1)
    if numbers is None:
        return torch.multinomial(shares, 1)[:, 0]
    ends = shares.double().cumsum(-1)  # (B, V)
    cuts = torch.tensor(numbers, dtype=torch.float64, device=ends.device)[:, None] * ends[:, -1:]
    # The first token that ends behind the cut, which has a share; rounding must not put the cut at the very end.
    cuts = cuts.minimum(ends[:, -1:] * (1 - 1e-12))
    return (ends <= cuts).sum(-1)


class RoomyLayer(DynamicLayer):
    """Keys and values (B, heads, T, head size) at the front of a larger block, so that one more token copies nothing.

    Under autocast they are kept in the type to which attention would cast all of them for every token.
    """

    ROOM = 64
    """Tokens of free room in a new block."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.blocks: list[torch.Tensor] = []
            self.length = 0
        end = self.length + key_states.shape[2]
        states = [key_states, value_states]
        device = key_states.device.type
        if torch.is_autocast_enabled(device):
            states = [state.to(torch.get_autocast_dtype(device)) for state in states]
        if not self.blocks or self.blocks[0].shape[2] < end:
            self.blocks = [self._enlarged(i, new, end + self.ROOM) for i, new in enumerate(states)]
        for block, new in zip(self.blocks, states, strict=True):
            block[:, :, self.length : end] = new
        self.length = end
        self.keys, self.values = (block[:, :, :end] for block in self.blocks)
        return self.keys, self.values

    def _enlarged(self, i: int, new: torch.Tensor, size: int) -> torch.Tensor:
        block = new.new_empty((*new.shape[:2], size, new.shape[3]))
        if self.length:
            block[:, :, : self.length] = (self.keys, self.values)[i]
        return block

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._replace_blocks(block[indices] for block in self.blocks)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._replace_blocks(block.repeat_interleave(repeats, dim=0) for block in self.blocks)

    def _replace_blocks(self, blocks: Iterable[torch.Tensor]) -> None:
        self.blocks = list(blocks)
        self.keys, self.values = (block[:, :, : self.length] for block in self.blocks)


class StateLayer(LinearAttentionLayer):
    """Of linear attention: a state and the last inputs of a convolution, of the same size for every token."""

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.reorder_cache(indices)


def new_cache(model: nn.Module) -> DynamicCache:
    cache = DynamicCache(config=model.config.get_text_config())
    cache.layers = [StateLayer() if isinstance(layer, LinearAttentionLayer) else RoomyLayer() for layer in cache.layers]
    return cache


def share_prefix(model: nn.Module, inputs: dict) -> tuple[dict, DynamicCache]:
    """Inputs of a left-padded batch (B, T) without their common beginning, and its keys and values, computed once.

    System prompt and tools are the same in every request. Padding goes behind them, so that the mask stays (B, T):

        pad  pad  sys  tools  a            sys  tools  pad  pad  a
        sys  tools  b  b  b         ->     sys  tools  b    b    b

    Not where a layer keeps a state, which the padding would run down.
    """
    cache = new_cache(model)
    has_state = any(isinstance(layer, StateLayer) for layer in cache.layers)
    num_shared = 0 if has_state else count_shared(inputs)
    if num_shared == 0:
        return inputs, cache
    inputs = dict(inputs)
    num_pads = (inputs["attention_mask"] == 0).sum(1, keepdim=True)  # (B, 1)
    places = torch.arange(inputs["input_ids"].shape[1], device=num_pads.device)  # (T,)
    source = torch.where(places < num_shared + num_pads, places - num_shared, places)
    source = torch.where(places < num_shared, places + num_pads, source)  # (B, T)
    for key in TOKEN_INPUTS:
        inputs[key] = inputs[key].gather(-1, source.expand_as(inputs[key]))
    prefix = {key: inputs[key][..., :1, :num_shared] for key in TOKEN_INPUTS}
    model(**prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(len(inputs["input_ids"]))
    for key in ("input_ids", "position_ids", "mm_token_type_ids"):
        inputs[key] = inputs[key][..., num_shared:]
    return inputs, cache


def count_shared(inputs: dict) -> int:
    """How many text tokens all rows of a left-padded batch begin with; 0 for a batch of one, which shares nothing."""
    if len(inputs["input_ids"]) == 1:
        return 0
    rows = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    kinds = [
        kind[mask.bool()] for kind, mask in zip(inputs["mm_token_type_ids"], inputs["attention_mask"], strict=True)
    ]
    length = min(map(len, rows)) - 1  # something must be left to compute the first new token from
    ids = torch.stack([row[:length] for row in rows])  # (B, length)
    is_text = torch.stack([kind[:length] for kind in kinds]) == 0
    is_shared = ((ids == ids[0]) & is_text).all(0)  # (length,)
    return int(is_shared.long().cumprod(0).sum())


@contextmanager
def forward_attention(model: nn.Module) -> Iterator[None]:
    """Eager attention, which a CPU trains with because sdpa's backward is slow there, gives way to sdpa."""
    config = base_of(model).config.get_text_config()
    name = config._attn_implementation
    if name == "eager":
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = name


@contextmanager
def cast_weights(model: nn.Module) -> Iterator[None]:
    """Linear layers with float32 masters hold, inside, the bfloat16 weights that autocast makes of them each time.

    Only where `build_model` bound autocast to the forward; the numbers are the same. Costs half of the masters' memory.
    """
    masters = []
    if base_of(model).computes_in_bfloat16:
        masters = [
            (module, name, parameter)
            for module in model.modules()
            if type(module) is nn.Linear
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.dtype == torch.float32
        ]
    # Another parameter, not other data: an embedding that is tied to the head stays as it is.
    for module, name, master in masters:
        setattr(module, name, nn.Parameter(master.bfloat16(), requires_grad=False))
    try:
        yield
    finally:
        for module, name, master in masters:
            setattr(module, name, master)
