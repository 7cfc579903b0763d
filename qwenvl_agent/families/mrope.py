"""Multimodal rotary positions of Qwen's vision models: text, time, row and column. T tokens."""

from collections.abc import Sequence

import numpy as np


def token_positions(is_image: np.ndarray, grids: Sequence[tuple[int, int]]) -> np.ndarray:
    """(4, T) text, t, h, w positions of a row whose pictures have `grids` (rows, columns) of tokens.

    Text counts on by one on all three axes; a picture's tokens stand at (start, start + row, start + column), and the
    text after it goes on at start + max(rows, columns).
    """
    num_tokens = len(is_image)
    positions = np.empty((4, num_tokens), dtype=np.int64)
    positions[0] = np.arange(num_tokens)
    at = next_position = 0
    starts = np.flatnonzero(is_image & ~np.r_[False, is_image[:-1]])
    for start, (rows, columns) in zip(starts.tolist(), grids, strict=True):
        positions[1:, at:start] = next_position + np.arange(start - at)
        next_position += start - at
        at = start + rows * columns
        positions[1, start:at] = next_position
        positions[2, start:at] = next_position + np.repeat(np.arange(rows), columns)
        positions[3, start:at] = next_position + np.tile(np.arange(columns), rows)
        next_position += max(rows, columns)
    positions[1:, at:] = next_position + np.arange(num_tokens - at)
    return positions
