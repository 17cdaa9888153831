"""Experiments over seeds: the mean of an arm, and the paired difference of two.

Arms that share a seed share their data split and random draws, so their difference is taken seed by seed: what a seed
does to both cancels.
"""

import math
from typing import NamedTuple

from scipy import stats

from benchmarks.records import RecordError, Row


class Mean(NamedTuple):
    """`error`: standard error of the mean, s / sqrt(n) with s over n - 1; nan for one seed."""

    mean: float
    error: float
    n: int


class Difference(NamedTuple):
    """Mean of the paired differences with its 95 % interval by Student's t (n - 1 degrees); nan bounds for one pair."""

    mean: float
    low: float
    high: float
    n: int


def values(rows: list[Row], arm: str, case: str | None = None) -> dict[int, float]:
    """seed -> value of one arm (in one case). Raises RecordError for an arm that is absent or a seed that is twice."""
    found: dict[int, float] = {}
    for row in rows:
        if row["arm"] != arm or row.get("case") != case:
            continue
        seed, value = row["seed"], row["value"]
        if not isinstance(seed, int) or not isinstance(value, int | float):
            raise RecordError(f"arm {arm!r}: seed {seed!r} and value {value!r} must be numbers.")
        if seed in found:
            raise RecordError(f"arm {arm!r} has seed {seed} twice{f' in case {case!r}' if case else ''}.")
        found[seed] = float(value)
    if not found:
        raise RecordError(f"There is no arm {arm!r}{f' in case {case!r}' if case else ''} in these rows.")
    return found


def mean(sample: list[float]) -> Mean:
    n = len(sample)
    centre = math.fsum(sample) / n
    if n == 1:
        return Mean(centre, math.nan, 1)
    return Mean(centre, math.sqrt(math.fsum((v - centre) ** 2 for v in sample) / (n - 1) / n), n)


def paired(rows: list[Row], arm: str, against: str, case: str | None = None, level: float = 0.95) -> Difference:
    """`arm` minus `against` over the seeds that both have. Raises RecordError where they share none."""
    ours, theirs = values(rows, arm, case), values(rows, against, case)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise RecordError(f"Arms {arm!r} and {against!r} share no seed.")
    centre, error, n = mean([ours[s] - theirs[s] for s in seeds])
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * error if n > 1 else math.nan
    return Difference(centre, centre - half, centre + half, n)
