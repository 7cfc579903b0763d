import math

import pytest

from qwenvl_agent.statistics import (
    bootstrap_mean,
    bootstrap_ratio,
    clustered_share,
    holm,
    mcnemar_exact,
    paired_test,
    path_efficiency,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(35, 50, 0.562, 0.809), (70, 100, 0.604, 0.781), (140, 200, 0.633, 0.759), (350, 500, 0.658, 0.739)],
)
def test_wilson_gives_published_values(successes, n, low, high):
    interval = wilson(successes, n)
    assert (round(interval.low, 3), round(interval.high, 3)) == (low, high)
    assert interval.value == successes / n and interval.n == n


def test_wilson_holds_at_the_ends():
    assert round(wilson(50, 50).low, 3) == 0.929 and wilson(50, 50).high == 1.0
    assert wilson(0, 50).low == 0.0 and round(wilson(0, 50).high, 3) == 0.071
    assert math.isnan(wilson(0, 0).value) and wilson(0, 0)[1:] == (0.0, 1.0, 0)


@pytest.mark.parametrize(("b", "c", "p"), [(12, 4, 0.077), (20, 8, 0.036), (30, 15, 0.036), (5, 5, 1.0), (0, 0, 1.0)])
def test_mcnemar_exact_values(b, c, p):
    assert round(mcnemar_exact(b, c), 3) == p
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_bootstrap_is_seeded_and_close_to_the_normal_interval():
    values = [float(i % 10) for i in range(400)]
    interval = bootstrap_mean(values)
    assert interval == bootstrap_mean(values) != bootstrap_mean(values, seed=1)
    half = 1.96 * math.sqrt(8.25 / 400)  # the variance of 0..9 is 8.25
    assert interval.value == 4.5
    assert interval.low == pytest.approx(4.5 - half, abs=0.02) and interval.high == pytest.approx(4.5 + half, abs=0.02)


def test_cluster_bootstrap_is_as_wide_as_its_clusters():
    # 20 episodes of 10 turns that all end alike carry the information of 20 turns, not of 200.
    clustered = bootstrap_ratio([10, 0] * 10, [10, 10] * 10)
    independent = bootstrap_mean([1, 0] * 100)
    assert clustered.value == independent.value == 0.5
    assert (clustered.high - clustered.low) > 2.8 * (independent.high - independent.low)


def test_bootstrap_leaves_out_empty_clusters():
    assert bootstrap_ratio([1, 0, 0], [2, 0, 2]).n == 2
    assert math.isnan(bootstrap_ratio([0], [0]).value) and math.isnan(bootstrap_mean([]).low)


def test_a_clustered_share_at_the_ends_is_not_certain():
    assert clustered_share([9, 5], [9, 5]) == wilson(2, 2) and clustered_share([0] * 50, [3] * 50) == wilson(0, 50)
    assert clustered_share([1, 2], [2, 2]) == bootstrap_ratio([1, 2], [2, 2])


def test_bootstrap_in_blocks():
    assert bootstrap_mean([1.0] * 1_000)[:3] == (1.0, 1.0, 1.0)


def test_paired_test_counts_discordant_seeds():
    first = [True] * 20 + [False] * 8 + [True] * 100
    second = [False] * 20 + [True] * 8 + [True] * 100
    test = paired_test(first, second)
    assert (test.only_first, test.only_second, round(test.p_value, 3)) == (20, 8, 0.036)
    assert test.difference.value == 12 / 128 and 0 < test.difference.low < 12 / 128 < test.difference.high
    with pytest.raises(ValueError, match="128 and 1 outcomes"):
        paired_test(first, [True])


def test_holm_adjusts_in_the_given_order():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_path_efficiency():
    assert path_efficiency(True, 4, 8) == 0.5
    assert path_efficiency(True, 4, 3) == 1.0
    assert path_efficiency(False, 4, 4) == 0.0
