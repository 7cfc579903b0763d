"""Rows behind one another in packs, without padding, and what all rows of a pack begin with only once.

Agents' rows begin alike: system prompt and tools, often half of a row. A pack is computed as one sequence in which a
token sees the common beginning and its own row:

    padded                           packed
    sys tools a a .                  sys tools a a b b b c
    sys tools b b b                   0    0   1 1 2 2 2 3      segments: 0 is the common beginning
    sys tools c . .

Positions start again behind the common beginning with every row, so that each row is computed as if it stood alone:
its losses and, summed over the rows, the gradients are the same.

T tokens; columns are a row's arrays by name, all of them (..., T).
"""

from collections.abc import Sequence

import numpy as np

Columns = dict[str, np.ndarray]
PADDING = -1
"""The segment of what fills up a pack."""


def plan_packs(rows: Sequence[np.ndarray], may_share: Sequence[int], max_tokens: int) -> list[tuple[list[int], int]]:
    """(rows' indices, number of tokens they share) of each pack; a longer row than `max_tokens` is a pack of its own.

    `rows` are token ids; row i may give at most its first `may_share[i]` tokens to the common beginning. There are as
    few packs as the limit allows to rows in sorted order, and as even ones, since all are padded to the longest.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i].tolist())  # who begins alike stands together
    packs = _fill(rows, may_share, order, max_tokens)
    low, high = 0, max_tokens  # the smallest limit with so many packs
    while len(packs) > 1 and high - low > 1:
        middle = (low + high) // 2
        tried = _fill(rows, may_share, order, middle)
        if len(tried) == len(packs):
            high, packs = middle, tried
        else:
            low = middle
    return packs


def _fill(
    rows: Sequence[np.ndarray], may_share: Sequence[int], order: Sequence[int], max_tokens: int
) -> list[tuple[list[int], int]]:
    packs: list[tuple[list[int], int]] = []
    size = 0
    for i in order:
        if packs:
            members, shared = packs[-1]
            common = min(may_share[i], may_share[members[0]] if len(members) == 1 else shared)
            common = min(common, num_common(rows[members[0]], rows[i]))
            joined = common + sum(len(rows[j]) - common for j in [*members, i])
            # Not if the others would lose more of what they share than there is to gain.
            if joined <= min(max_tokens, size + len(rows[i])):
                packs[-1], size = ([*members, i], common), joined
                continue
        packs.append(([i], 0))
        size = len(rows[i])
    return packs


def num_common(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens both begin with."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length


def join(rows: Sequence[Columns], num_shared: int) -> Columns:
    """The columns of a pack, `segments` (T,) among them: 0 for the common beginning, then 1 and on by row."""
    parts = [{key: value[..., :num_shared] for key, value in rows[0].items()}]
    parts += [{key: value[..., num_shared:] for key, value in row.items()} for row in rows]
    columns = {key: np.concatenate([part[key] for part in parts], axis=-1) for key in rows[0]}
    sizes = [part["input_ids"].shape[-1] for part in parts]
    return columns | {"segments": np.repeat(np.arange(len(parts)), sizes)}


def pad(rows: Sequence[Columns], fill: dict[str, int], left: bool = False) -> Columns:
    """Columns (..., B, T) of all rows, filled up on one side with `fill` or 0."""
    num_columns = max(row["input_ids"].shape[-1] for row in rows)
    padded = {}
    for key, example in rows[0].items():
        block = np.full((*example.shape[:-1], len(rows), num_columns), fill.get(key, 0), dtype=example.dtype)
        for i, row in enumerate(rows):
            length = row[key].shape[-1]
            start = num_columns - length if left else 0
            block[..., i, start : start + length] = row[key]
        padded[key] = block
    return padded
