"""The rows of an experiment's record by arm: the mean over seeds, and the paired difference of two arms.

Arms that share a seed share their data split and random draws, so their difference is taken seed by seed. The
arithmetic is `fastmpl.paired_statistics`; here is what belongs to rows.
"""

from typing import NamedTuple

from benchmarks.records import RecordError, Row
from fastmpl import paired_statistics


class Mean(NamedTuple):
    """`error`: standard error of the mean; nan for one seed."""

    mean: float
    error: float
    n: int


class Difference(NamedTuple):
    """Mean of the paired differences with its 95 % interval; nan bounds for one pair."""

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
    return Mean(paired_statistics.mean(sample), paired_statistics.standard_error(sample), len(sample))


def paired(rows: list[Row], arm: str, against: str, case: str | None = None) -> Difference:
    """`arm` minus `against` over the seeds that both have. Raises RecordError where they share none."""
    ours, theirs = values(rows, arm, case), values(rows, against, case)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise RecordError(f"Arms {arm!r} and {against!r} share no seed.")
    found = paired_statistics.paired_interval([ours[s] for s in seeds], [theirs[s] for s in seeds])
    return Difference(*found, len(seeds))
