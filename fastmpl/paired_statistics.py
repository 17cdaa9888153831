"""Statistics of a few seeds: mean, standard error, and the paired difference of two arms with the same draws.

`paired_interval` is right for differences that are about normal. Where one run in ten collapses it is not: its 95 %
interval then holds the true mean in 43 % of all cases at 5 seeds, 64 % at 10 and 88 % at 20
(`tests/test_paired_statistics.py` draws them). `paired_median` holds the median of the differences with the confidence
that it states, whatever their distribution.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import bdtr, stdtr, stdtrit  # scipy.stats takes a second to import


class Interval(NamedTuple):
    """An estimate and where it lies with 95 % confidence; the bounds are NaN where one seed cannot tell."""

    mean: float
    low: float
    high: float


class MedianInterval(NamedTuple):
    """The median of the paired differences, bounds of it, and their confidence in [0, 1]; NaN for less than two seeds."""

    median: float
    low: float
    high: float
    confidence: float


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def standard_error(values: Sequence[float]) -> float:
    """Of the mean, from the sample's deviation; NaN of less than two values."""
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1) / len(values))


def paired_interval(arm: Sequence[float], baseline: Sequence[float]) -> Interval:
    """`arm` minus `baseline`, seed by seed in the same order: Student's t interval of the mean difference."""
    if len(arm) != len(baseline):
        raise ValueError(f"A paired difference needs the same seeds: there are {len(arm)} and {len(baseline)}.")
    differences = [a - b for a, b in zip(arm, baseline, strict=True)]
    centre = mean(differences)
    if len(differences) < 2:
        return Interval(centre, math.nan, math.nan)
    half = float(stdtrit(len(differences) - 1, 0.975)) * standard_error(differences)
    return Interval(centre, centre - half, centre + half)


def paired_median(arm: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> MedianInterval:
    """`arm` minus `baseline`, seed by seed: the median difference, between two order statistics (the sign test's bounds).

    The interval from the k-th smallest to the k-th largest of n differences holds the median with confidence
    1 - 2 P(B < k), B binomial(n, 1/2). k is the largest that reaches `confidence`; below six seeds none reaches 0.95, and
    the interval is that of all differences, with the confidence that it has (0.9375 for five). Raises ValueError if the
    seeds are not paired.
    """
    if len(arm) != len(baseline):
        raise ValueError(f"A paired difference needs the same seeds: there are {len(arm)} and {len(baseline)}.")
    differences = sorted(a - b for a, b in zip(arm, baseline, strict=True))
    n = len(differences)
    if n < 2:
        return MedianInterval(differences[0] if differences else math.nan, math.nan, math.nan, math.nan)
    reached = [1 - 2 * float(bdtr(k - 1, n, 0.5)) for k in range(1, n // 2 + 1)]
    k = max([1, *(k for k, found in enumerate(reached, 1) if found >= confidence)])
    centre = (differences[(n - 1) // 2] + differences[n // 2]) / 2
    return MedianInterval(centre, differences[k - 1], differences[n - k], reached[k - 1])


def paired_p(arm: Sequence[float], baseline: Sequence[float]) -> float:
    """Student's paired t-test, two-sided: the probability of a mean difference at least this large if there were none.

    1 where no seed differs, NaN where one seed cannot tell.
    """
    if len(arm) != len(baseline):
        raise ValueError(f"A paired test needs the same seeds: there are {len(arm)} and {len(baseline)}.")
    differences = [a - b for a, b in zip(arm, baseline, strict=True)]
    if len(differences) < 2:
        return math.nan
    error, centre = standard_error(differences), mean(differences)
    if error == 0:
        return 1.0 if centre == 0 else 0.0
    return float(2 * stdtr(len(differences) - 1, -abs(centre) / error))
