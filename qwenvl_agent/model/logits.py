"""How many logits are made at once, in training and in the plan of its memory. Torch-free."""

MAX_LOGITS = 2**25
"""That a training step makes at once, 128 MiB in float32. With fewer the head's weight is read more often."""


def head_rows(num_tokens: int, vocab: int) -> int:
    """Tokens whose logits are made at once: in parts as even as can be, because a product of few rows is slow."""
    num_parts = max(1, -(-num_tokens * vocab // MAX_LOGITS))
    return max(1, -(-num_tokens // num_parts))
