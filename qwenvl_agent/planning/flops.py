"""Floating-point operations of training steps, by the arithmetic of the architecture.

FLOPs are those of the model, not of the implementation: a multiply-add is two, attention counts the full square of a
row's own tokens (as PaLM's appendix B does), padding and the recomputation of checkpointing count nothing. A frozen
matrix has a forward and an input's gradient, a trained one its own gradient too; a frozen vision tower a forward alone,
and so has what lies before its first adapter.
"""

from collections.abc import Sequence

from qwenvl_agent.config import ModelConfig
from qwenvl_agent.planning.vram import Architecture, adapters_by_place


def batch_flops(cfg: ModelConfig, arch: Architecture, batch: dict) -> float:
    """Of one micro-batch's forward and backward; of packs, what they have in common once."""
    lengths = batch["attention_mask"].sum(1).tolist()
    pairs = sum(map(pack_pairs, batch["pack_sizes"])) if "pack_sizes" in batch else None
    return step_flops(cfg, arch, lengths, len(batch["supervised"]), picture_patches(batch), pairs)


def pack_pairs(sizes: Sequence[int]) -> int:
    """Queries times the keys beside them, of a pack's common beginning and its rows: each row sees both."""
    shared, *rows = sizes
    return shared**2 + sum(row * (shared + row) for row in rows)


def step_flops(
    cfg: ModelConfig,
    arch: Architecture,
    lengths: Sequence[int],
    supervised: int,
    pictures: Sequence[int],
    pairs: int | None = None,
) -> float:
    """Forward and backward of rows of `lengths` tokens with `supervised` of them, and `pictures` of so many patches.

    `pairs` of queries and keys, if they are not the squares of the lengths.
    """
    matrix = 3 if cfg.method == "full" else 2  # forward and the input's gradient; the weight's own if it trains
    tokens = sum(lengths)
    layers = matrix * 2 * tokens * arch.active_matrices
    by_place = adapters_by_place(cfg, arch)
    patches = sum(pictures)
    adapters = 3 * 2 * tokens * by_place["language"]
    if arch.experts:
        adapters += 3 * 2 * tokens * by_place["experts"] * arch.experts_used // arch.experts
    adapters += 3 * 2 * (patches // arch.merge**2 * by_place["merger"] + patches * by_place["vision"])
    # Scores and their product with the values; backward differentiates both factors of each.
    pairs = sum(length**2 for length in lengths) if pairs is None else pairs
    attention = 3 * 4 * arch.full_layers * arch.q * pairs
    if arch.linear_layers:  # what a token reads from the state, and what it writes there
        attention += 3 * 8 * arch.linear_layers * tokens * arch.linear_values**2 // arch.linear_heads
    head = matrix * 2 * supervised * arch.embedding
    tower = sum(tower_pass_flops(cfg, arch, patches) for patches in pictures)
    return float(layers + adapters + attention + head + tower)


def tower_pass_flops(cfg: ModelConfig, arch: Architecture, patches: int) -> int:
    """The vision tower's forward for one picture and, as far as something trains there, its backward."""
    forward = tower_flops(arch, patches)
    if cfg.train_vision:
        return 3 * forward
    if not cfg.vision_has_gradient:
        return forward
    merged = 2 * (patches // arch.merge**2) * arch.num_mergers
    if "vision" not in cfg.lora_places:
        inputs, outputs = arch.merger_matrices[1]
        return forward + merged * inputs * outputs
    matrices = 2 * patches * arch.vision_depth * sum(a * b for a, b in arch.vision_matrices)
    attention = 2 * 4 * arch.vision_depth * arch.vision_hidden * patches**2
    return forward + matrices + attention + merged * sum(a * b for a, b in arch.merger_matrices)


def tower_flops(arch: Architecture, patches: int) -> int:
    """The vision tower's forward for one picture."""
    v = arch.vision_hidden
    block = sum(inputs * outputs for inputs, outputs in arch.vision_matrices)
    mergers = arch.num_mergers * sum(inputs * outputs for inputs, outputs in arch.merger_matrices)
    stem_and_blocks = 2 * patches * (arch.patch_values * v + arch.vision_depth * block)
    attention = 4 * arch.vision_depth * v * patches**2
    return stem_and_blocks + attention + 2 * (patches // arch.merge**2) * mergers


def picture_patches(batch: dict) -> list[int]:
    """Patches of each picture."""
    return batch["image_grid_thw"].prod(-1).tolist() if "image_grid_thw" in batch else []
