"""Compares variants of one computation: interleaved in one process, so that what else the machine does hits all alike.

Every round runs each variant once, in an order that rotates from round to round. Ratios against the baseline are taken
within a round, and their median and quartiles are the result; absolute times are reported beside it. On a CPU the clock
of the comparison is CPU seconds (all threads of this process), which a shared machine disturbs least; wall time stands
beside it. Bytes and operators are counted, not timed (`fastmpl.analysis.accounting`), in one further call.
"""

import gc
import time
from collections.abc import Callable, Container, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch

from benchmarks.records import Record, RecordError, Row, Scalar
from fastmpl.analysis.accounting import measure

Variant = Callable[[], object]
Clock = Literal["cpu", "wall"]


class Sample(NamedTuple):
    """Seconds of one call."""

    cpu: float
    wall: float


def _run_and_wait(variant: Variant) -> None:
    variant()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def _time(variant: Variant, repeats: int) -> Sample:
    """One sample: `repeats` calls, with the collector off and the device idle at both ends."""
    gc.collect()
    gc.disable()
    try:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(repeats - 1):
            variant()
        _run_and_wait(variant)
        return Sample((time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats)
    finally:
        gc.enable()


def _quartiles(name: str, sample: list[float]) -> Row:
    low, middle, high = (float(q) for q in np.quantile(sample, (0.25, 0.5, 0.75)))
    return {f"{name}_q1": low, f"{name}_median": middle, f"{name}_q3": high}


def sample(variants: Mapping[str, Variant], rounds: int, warmup: int, repeats: int = 1) -> dict[str, list[Sample]]:
    """`rounds` samples of each variant, interleaved, after `warmup` calls of each."""
    names = list(variants)
    for _ in range(warmup):
        for name in names:
            _run_and_wait(variants[name])
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    gc.freeze()  # the collection before a sample looks at what the variants made, not at all of torch
    try:
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                samples[name].append(_time(variants[name], repeats))
    finally:
        gc.unfreeze()
    return samples


def compare(
    variants: Mapping[str, Variant],
    *,
    rounds: int,
    warmup: int,
    baseline: str,
    name: str = "comparison",
    config: Mapping[str, Scalar] | None = None,
    repeats: int = 1,
    clock: Clock = "cpu",
    watch: Mapping[str, tuple[object, ...]] | None = None,
    uncounted: Container[str] = (),
) -> Record:
    """A timing record with one row per variant.

    variants: name -> a call that does the whole computation once. Use clock = "wall" for work on a GPU.
    repeats: calls per sample, for variants of microseconds. watch: name -> what that variant uses and exists before
    (networks, optimisers, batches), so that its peak includes them. uncounted: variants whose bytes and operators are
    None: compiled code refuses a mode that counts. Rows: seconds per call (`cpu_*`, `wall_*`), and
    `speedup_*`, the baseline's time over the variant's in the same round: above 1 is faster than the baseline; each as
    median and quartiles of `n` samples. `peak_bytes`, `base_bytes`, `operations`: see accounting.Account.
    """
    if baseline not in variants:
        raise RecordError(f"The baseline {baseline!r} is not among the variants: {', '.join(variants)}.")
    if rounds < 1 or warmup < 1 or repeats < 1:
        raise RecordError(f"rounds = {rounds}, warmup = {warmup}, repeats = {repeats}: each must be at least 1.")
    samples = sample(variants, rounds, warmup, repeats)
    times = {variant: [getattr(s, clock) for s in samples[variant]] for variant in variants}
    rows: list[Row] = []
    for variant, call in variants.items():
        account = None if variant in uncounted else measure(call, *(watch or {}).get(variant, ()))
        rows.append(
            {
                "variant": variant,
                "n": rounds,
                **_quartiles("cpu", [s.cpu for s in samples[variant]]),
                **_quartiles("wall", [s.wall for s in samples[variant]]),
                **_quartiles("speedup", [b / t for b, t in zip(times[baseline], times[variant], strict=True)]),
                "base_bytes": account and account.base_bytes,
                "peak_bytes": account and account.peak_bytes,
                "operations": account and account.operations,
                "samples": times[variant],
            }
        )
    asked: dict[str, Scalar] = {"baseline": baseline, "rounds": rounds, "warmup": warmup, "repeats": repeats}
    return Record(name=name, kind="timing", rows=rows, config={**asked, "clock": clock, **(config or {})})
