"""What a few seeds say: mean, standard error, and the paired difference of two arms that saw the same draws."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t as students_t


class Interval(NamedTuple):
    """An estimate and where it lies with 95 % confidence; the bounds are NaN where one seed cannot tell."""

    mean: float
    low: float
    high: float


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
    half = float(students_t.ppf(0.975, len(differences) - 1)) * standard_error(differences)
    return Interval(centre, centre - half, centre + half)


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
    return float(2 * students_t.sf(abs(centre) / error, len(differences) - 1))
