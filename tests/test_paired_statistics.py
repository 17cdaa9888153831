"""The numbers of a comparison, against scipy's."""

import math

import pytest
from scipy import stats

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
