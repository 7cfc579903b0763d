"""Intervals and paired tests. Every rate comes with its interval; two policies are compared on the same seeds.

Turns of one episode depend on each other, so whatever is counted in turns or calls is resampled by whole episodes
(cluster bootstrap). Resampling is seeded: the same records give the same figures.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
# Cells of one block of resampled indices: keeps the memory of a bootstrap flat in the number of episodes.
BLOCK_CELLS = 2_000_000


class Interval(NamedTuple):
    """An estimate with its confidence bounds; `n` counts what was sampled (episodes, for clustered figures too)."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


class PairedTest(NamedTuple):
    """Two policies on the same seeds: `only_first` and `only_second` count the seeds that one of them alone solved."""

    difference: Interval
    only_first: int
    only_second: int
    p_value: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Share of successes with Wilson's score interval: never outside [0, 1], not empty at 0 or n successes."""
    if n == 0:
        return Interval(float("nan"), 0.0, 1.0, 0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5 / scale
    # Exactly 0 and 1 where the algebra says so: rounding would leave 1e-17 there.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high, n)


def bootstrap_mean(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean with a percentile bootstrap interval; NaN bounds if there is nothing to average."""
    return bootstrap_ratio(values, [1.0] * len(values), confidence, seed)


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> Interval:
    """sum(numerators) / sum(denominators), resampled by cluster: one numerator and denominator per episode.

    The share of illegal calls, say, has each episode's illegal calls over its calls. Episodes with denominator 0 say
    nothing and are left out.
    """
    pairs = np.array([numerators, denominators], dtype=float)
    pairs = pairs[:, pairs[1] > 0]
    n = pairs.shape[1]
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    top, bottom = _resampled_sums(pairs, seed)
    low, high = _percentiles(top / bottom, confidence)
    return Interval(float(pairs[0].sum() / pairs[1].sum()), low, high, n)


def clustered_share(hits: Sequence[int], tries: Sequence[int], confidence: float = 0.95, seed: int = 0) -> Interval:
    """Share of tries that hit, one pair of counts per episode, resampled by episode.

    At 0 and 1 resampling sees no spread, which would claim certainty: there it is Wilson's interval over the episodes.
    """
    interval = bootstrap_ratio(hits, tries, confidence, seed)
    if interval.value in (0.0, 1.0):
        return wilson(int(interval.value) * interval.n, interval.n, confidence)
    return interval


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two paired policies are equally good, from their discordant seeds."""
    from scipy.stats import binomtest  # here, because it takes seconds to import

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def paired_test(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95, seed: int = 0) -> PairedTest:
    """McNemar's exact test and the bootstrapped difference `first - second` of success over the same seeds."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} outcomes cannot be paired: give both on the same seeds")
    pairs = np.array([first, second], dtype=bool)
    only_first, only_second = int((pairs[0] & ~pairs[1]).sum()), int((pairs[1] & ~pairs[0]).sum())
    difference = bootstrap_mean(pairs[0].astype(float) - pairs[1], confidence, seed)
    return PairedTest(difference, only_first, only_second, mcnemar_exact(only_first, only_second))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order: each may be held against the level of the whole family."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def path_efficiency(success: bool, optimal_turns: float, turns: int) -> float:
    """Success weighted by path length: 1 for a success in the optimal number of turns, 0 for a failure."""
    if not success:
        return 0.0
    return optimal_turns / max(turns, optimal_turns)


def _resampled_sums(pairs: np.ndarray, seed: int) -> np.ndarray:
    """(2, RESAMPLES): both rows of `pairs` (2, n) summed over n columns drawn with replacement."""
    n = pairs.shape[1]
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_CELLS // n)
    sizes = [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]
    return np.concatenate([pairs[:, rng.integers(n, size=(size, n))].sum(axis=2) for size in sizes], axis=1)


def _percentiles(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)
