"""The numbers of a comparison, against scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from fastmpl.paired_statistics import paired_median
from fastmpl.report import Interval, mean, paired_interval, points, standard_error

EXACT, OFF = (0.858, 0.884, 0.872, 0.861), (0.846, 0.868, 0.861, 0.866)


def test_the_paired_interval_is_that_of_a_paired_t_test() -> None:
    low, high = stats.ttest_rel(EXACT, OFF).confidence_interval(0.95)
    assert paired_interval(EXACT, OFF) == pytest.approx((mean(EXACT) - mean(OFF), low, high))


def test_the_standard_error_is_that_of_the_sample() -> None:
    assert standard_error(EXACT) == pytest.approx(stats.sem(EXACT))


def test_one_seed_has_no_spread() -> None:
    assert math.isnan(standard_error([0.5]))
    assert paired_interval([0.75], [0.5]).mean == 0.25
    assert math.isnan(paired_interval([0.75], [0.5]).low)


def test_other_seeds_are_not_paired() -> None:
    with pytest.raises(ValueError, match="same seeds"):
        paired_interval([0.5, 0.6], [0.5])


@pytest.mark.parametrize(
    ("interval", "shown"),
    [
        (Interval(0.249, 0.221, 0.277), "+24.9 [+22.1, +27.7]"),
        (Interval(-0.0001, -0.01, 0.01), "+0.0 [\N{MINUS SIGN}1.0, +1.0]"),
        (Interval(0.5, math.nan, math.nan), "+50.0"),
        (None, "–"),
    ],
)
def test_differences_are_points_with_a_sign(interval: Interval | None, shown: str) -> None:
    assert points(interval) == shown


@pytest.mark.parametrize(
    ("n", "places", "confidence"), [(5, (0, 4), 0.9375), (6, (0, 5), 0.96875), (12, (2, 9), 0.9614)]
)
def test_the_median_lies_between_the_order_statistics_of_the_sign_test(
    n: int, places: tuple[int, int], confidence: float
) -> None:
    arm = np.random.default_rng(0).normal(size=n).tolist()
    found, ordered = paired_median(arm, [0.0] * n), sorted(arm)
    assert (found.low, found.high) == (ordered[places[0]], ordered[places[1]])
    assert found.confidence == pytest.approx(confidence, abs=1e-4)
    assert found.median == pytest.approx(float(np.median(arm)))
    outside = stats.quantile_test(arm, q=found.low - 1e-9, p=0.5).pvalue  # scipy's sign test just outside of the bounds
    assert outside <= 1 - found.confidence + 1e-9


def test_one_seed_has_no_median_interval() -> None:
    assert paired_median([0.75], [0.5]).median == 0.25
    assert math.isnan(paired_median([0.75], [0.5]).confidence)
    with pytest.raises(ValueError, match="same seeds"):
        paired_median([0.5, 0.6], [0.5])


@pytest.mark.parametrize(("n", "share"), [(5, 0.43), (10, 0.64), (20, 0.88)])
def test_where_one_run_in_ten_collapses_the_median_is_held_and_the_mean_is_not(n: int, share: float) -> None:
    """An arm is a point better, and one run in ten of it ends 40 points below."""
    rng, draws = np.random.default_rng(0), 1000
    differences = rng.normal(1.0, 1.0, (draws, n)) - 40.0 * (rng.random((draws, n)) < 0.1)
    true_mean = 1.0 - 40.0 * 0.1
    many = rng.normal(1.0, 1.0, 200_000) - 40.0 * (rng.random(200_000) < 0.1)
    true_median = float(np.median(many))
    held_mean = held_median = 0
    for row in differences.tolist():
        by_mean, by_median = paired_interval(row, [0.0] * n), paired_median(row, [0.0] * n)
        held_mean += by_mean.low <= true_mean <= by_mean.high
        held_median += by_median.low <= true_median <= by_median.high
    assert held_median / draws >= paired_median([0.0] * n, [0.0] * n).confidence - 0.025
    assert held_mean / draws == pytest.approx(share, abs=0.01)
