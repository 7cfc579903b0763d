"""Which rows each micro-batch holds: one endless stream of rows, cut into optimizer steps, shared out to the ranks.

The stream is the epochs one after another, each an order that depends on the seed and the epoch's number alone. Optimizer
step s takes the rows at [s * G, (s + 1) * G) of the stream, G = batch_size * accumulation * world_size. So:

- a step is always full: what is left of an epoch is carried over into the step in which the next one begins;
- the rows of a step are the same however G is made up of batch, accumulation and ranks;
- to resume is to start at another step: there is no state but the number of steps done, which the training loop knows.
  (What DataLoader workers have fetched ahead does not count, so the sampler itself could not know.)
"""

from collections.abc import Iterator, Sequence

import numpy as np
from einops import rearrange
from torch.utils.data import Sampler

GOLDEN_RATIO = (5**0.5 - 1) / 2


class RowSampler(Sampler[list[int]]):
    """Endless micro-batches of one rank, for `DataLoader(batch_sampler=...)`; each `iter` begins at `start_step`.

    `weights` are relative numbers of draws, None for all alike: then an epoch holds each row exactly once. `lengths`
    sort the rows inside an optimizer step, longest first, so that a micro-batch holds rows of like length and so do
    the ranks' micro-batches at the same moment; which rows a step learns from does not change.

    `deals` is for rows that are packed, which nothing fills up: rows of like length are dealt to the ranks, back and
    forth, so that ranks have as many tokens to compute at the same moment, and none waits for another.

    Ranks are shared out here: the DataLoader must not be sharded again.

    Example, 2 ranks, batch_size 1, accumulation 2: of the step's rows a b c d (sorted by length) rank 0 takes [a], [c]
    and rank 1 takes [b], [d]. With batch_size 2, accumulation 1: [a, b] and [c, d]; dealt: [a, d] and [b, c].
    """

    def __init__(
        self,
        num_rows: int,
        *,
        batch_size: int,
        accumulation: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        weights: Sequence[float] | np.ndarray | None = None,
        lengths: Sequence[float] | np.ndarray | None = None,
        deals: bool = False,
        start_step: int = 0,
    ):
        if num_rows < 1:
            raise ValueError("the training split has 0 rows: no step could be filled; add data or lower eval_fraction")
        assert 0 <= rank < world_size, (rank, world_size)
        self.num_rows = num_rows
        self.batch_size, self.accumulation = batch_size, accumulation
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.copies = _Copies(num_rows, weights, seed)
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.deals = deals
        self.start_step = start_step

    @property
    def rows_per_step(self) -> int:
        return self.batch_size * self.accumulation * self.world_size

    def num_steps(self, epochs: float) -> int:
        """Optimizer steps that show at least `epochs` times as many rows as there are."""
        return int(np.ceil(epochs * self.num_rows / self.rows_per_step))

    def epoch_of(self, step: int) -> float:
        """Epochs done before that optimizer step, as a fraction."""
        return step * self.rows_per_step / self.num_rows

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self._steps():
            for micro_batch in self._shared_out(rows)[self.rank]:
                yield micro_batch.tolist()

    def _shared_out(self, rows: np.ndarray) -> np.ndarray:
        """(rank, micro-batch, row) of a step's rows."""
        if not self.deals:
            # Neighbours in length meet in one micro-batch, then across ranks.
            return rearrange(rows, "(step rank row) -> rank step row", rank=self.world_size, row=self.batch_size)
        rounds = rows.reshape(-1, self.world_size).copy()
        rounds[1::2] = rounds[1::2, ::-1].copy()
        return rearrange(rounds, "(step row) rank -> rank step row", row=self.batch_size)

    def _steps(self) -> Iterator[np.ndarray]:
        """The rows of each optimizer step from start_step on."""
        epoch, offset = divmod(self.start_step * self.rows_per_step, self.num_rows)
        left = self.epoch_rows(epoch)[offset:]
        while True:
            while len(left) < self.rows_per_step:
                epoch += 1
                left = np.concatenate([left, self.epoch_rows(epoch)])
            rows, left = left[: self.rows_per_step], left[self.rows_per_step :]
            if self.lengths is not None:
                rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
            yield rows

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in the order in which they are drawn, always `num_rows` of them."""
        rows = self.copies.of_epoch(epoch)
        return rows[_permutation(len(rows), self.seed, epoch)]

    def state_dict(self, step: int) -> dict:
        """What a checkpoint after `step` optimizer steps keeps; plain JSON."""
        return {"step": step, "seed": self.seed, "num_rows": self.num_rows, "rows_per_step": self.rows_per_step}

    def load_state_dict(self, state: dict, accept_changes: bool = False) -> None:
        """Start where that checkpoint stopped; another batch, accumulation or world size is fine if G is the same."""
        for name, value in self.state_dict(state["step"]).items():
            if value != state[name] and not accept_changes:
                raise ValueError(
                    f"{name} is {value}, but {state[name]} in the checkpoint: rows would be repeated or skipped; "
                    "resume with the same data, seed and batch_size * accumulation * number of ranks, or take the rows "
                    "as they come: --resume --accept-changes"
                )
        self.start_step = state["step"]


class _Copies:
    """How often each row stands in an epoch: its share of the draws, rounded down or up so that the sum is exact.

    Systematic resampling: the rows' shares are laid end to end on a line of length num_rows, and the epoch draws the
    rows at u, u + 1, u + 2, ... From one epoch to the next u moves by the golden ratio, which spreads the draws of a
    row evenly: a row of share 0.5 comes about every second epoch, never at random for a long time not.
    """

    def __init__(self, num_rows: int, weights: Sequence[float] | np.ndarray | None, seed: int):
        shares = np.ones(num_rows) if weights is None else np.asarray(weights, dtype=np.float64)
        assert shares.shape == (num_rows,) and np.isfinite(shares).all() and (shares > 0).all(), shares
        self.num_rows = num_rows
        self.is_uniform = bool((shares == shares[0]).all())
        if self.is_uniform:
            return
        # Shuffled once, so that neighbours in a file do not share their luck.
        self.order = _permutation(num_rows, seed, -1)
        ends = np.cumsum(shares[self.order])
        self.ends = ends / ends[-1] * num_rows

    def of_epoch(self, epoch: int) -> np.ndarray:
        if self.is_uniform:
            return np.arange(self.num_rows)
        points = (epoch * GOLDEN_RATIO) % 1.0 + np.arange(self.num_rows)
        drawn = np.searchsorted(self.ends, points, side="right")
        return self.order[np.minimum(drawn, self.num_rows - 1)]


def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """A shuffle from raw bits: numpy promises the same bits in every version, but not the same `permutation`."""
    bits = np.random.PCG64(np.random.SeedSequence((seed, epoch + 1))).random_raw(num_rows)
    return np.argsort(bits, kind="stable")
