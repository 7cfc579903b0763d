"""Paired tests over training seeds and missions: exact flips of sign, intervals with two sources of chance, power.

All start from one matrix of differences (S training seeds, M missions): what two arms, trained with the same seed, got
on the same mission. Two questions are asked of it, and they are not the same:

- of these trained models: would they differ on other missions? Missions are the sample.
- of the arms: would they differ if they were trained again? Training seeds are the sample as well.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from qwenvl_agent.statistics import Interval

FLIPS = 9_999
"""Random flips where the differences are no whole numbers."""


def flip_test(differences: Sequence[float]) -> float:
    """Two-sided p-value that the differences are as likely to be of the other sign: all 2**n flips, counted exactly.

    On differences of -1, 0 and 1 it is McNemar's exact test. Differences that are no whole numbers are flipped at
    random instead, unless they are so few that all flips can be tried.
    """
    values = np.asarray(differences, dtype=float)
    values = values[values != 0]
    if not len(values):
        return 1.0
    if not (values == np.round(values)).all():
        from scipy.stats import permutation_test  # here, because it takes seconds to import

        test = permutation_test(
            (values,), np.sum, permutation_type="samples", n_resamples=FLIPS, rng=np.random.default_rng(0)
        )
        return float(test.pvalue)
    sizes = np.abs(values).astype(int)
    total = int(sizes.sum())
    shares = np.zeros(total + 1)  # [k]: share of the flips in which the positive ones sum to k
    shares[0] = 1.0
    for size in sizes:
        shares *= 0.5
        shares[size:] += shares[:-size].copy()
    sums = 2 * np.arange(total + 1) - total
    return float(min(1.0, shares[np.abs(sums) >= abs(values.sum())].sum()))


def least_p_value(num_pairs: int) -> float:
    """The smallest p-value that a flip test of so many pairs can give: 0.03125 with 6, above 0.05 with fewer."""
    return min(1.0, 2.0 ** (1 - num_pairs))


def crossed_interval(differences: np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean of (S, M) differences, S training seeds crossed with M missions, both drawn by chance; n is S.

    Variance components of a two-way layout without replication, degrees of freedom by Satterthwaite (Brennan,
    Generalizability Theory, 2001, chapter 6). With few seeds it is wide, as it must be. NaN bounds below 2 seeds.
    """
    num_seeds, num_missions = differences.shape
    mean = float(differences.mean())
    if num_seeds < 2 or num_missions < 2:
        return Interval(mean, float("nan"), float("nan"), num_seeds)
    by_seed, by_mission = differences.mean(1, keepdims=True), differences.mean(0, keepdims=True)
    rest = differences - by_seed - by_mission + mean
    freedoms = np.array([num_seeds - 1, num_missions - 1, (num_seeds - 1) * (num_missions - 1)])
    squares = np.array(
        [num_missions * ((by_seed - mean) ** 2).sum(), num_seeds * ((by_mission - mean) ** 2).sum(), (rest**2).sum()]
    )
    seed, mission, error = squares / freedoms
    # E[seed] and E[mission] hold E[error] once each; the variance of the mean has it once. An estimate below what one
    # source alone makes is chance, so the larger is taken.
    kept = [np.array([1, 1, -1]), np.array([1, 0, 0]), np.array([0, 1, 0])]
    variance, weights = max(((w @ (seed, mission, error), w) for w in kept), key=lambda pair: pair[0])
    if variance <= 0:
        return Interval(mean, mean, mean, num_seeds)
    freedom = variance**2 / ((weights * (seed, mission, error)) ** 2 / freedoms).sum()
    half = t_quantile((1 + confidence) / 2, freedom) * math.sqrt(variance / differences.size)
    return Interval(mean, mean - half, mean + half, num_seeds)


def t_quantile(probability: float, freedom: float) -> float:
    """Of Student's t."""
    from scipy.stats import t

    return float(t.ppf(probability, freedom))


def cohens_h(first: float, second: float) -> float:
    """Effect size between two shares, first against second: 0.2 is called small, 0.5 medium, 0.8 large."""
    return 2 * math.asin(math.sqrt(first)) - 2 * math.asin(math.sqrt(second))


def missions_needed(difference: float, discordance: float, power: float = 0.8, level: float = 0.05) -> int | None:
    """Missions with which McNemar's test finds a difference of two shares (Connor, Biometrics 43, 1987, formula 3).

    `discordance` is the share of missions that one of the two alone solves; None if it is below the difference, which
    cannot be, or if there is no difference to find.
    """
    if difference == 0 or discordance < abs(difference):
        return None
    normal = NormalDist()
    z_level, z_power = normal.inv_cdf(1 - level / 2), normal.inv_cdf(power)
    spread = math.sqrt(discordance - difference**2)
    return math.ceil(((z_level * math.sqrt(discordance) + z_power * spread) / difference) ** 2)


def detectable_difference(num_missions: int, discordance: float, power: float = 0.8) -> float | None:
    """The smallest difference, to a thousandth, that so many missions would show with this power; None if none is."""
    for thousandths in range(1, int(discordance * 1000) + 1):
        needed = missions_needed(thousandths / 1000, discordance, power)
        if needed is not None and needed <= num_missions:
            return thousandths / 1000
    return None
