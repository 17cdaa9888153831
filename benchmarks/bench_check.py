"""Do the ratios of the committed records still hold? `make bench-check`, or `python -m benchmarks.bench_check`.

A few pairs of the benchmarks, each for a second or two on one thread, interleaved in one process and timed in CPU seconds.
A ratio has to reach `FLOOR` of its record's: that is wide enough for another processor and a busy machine, and finds a
kernel that is no longer called, a copy that came in, a tape that is not used. It writes no record.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import torch

from benchmarks import bench_batch_norm, bench_features, bench_losses, bench_optimiser
from benchmarks.environment import keep_memory
from benchmarks.harness import sample
from benchmarks.records import Row, load

FLOOR: Final = 0.6
ROUNDS: Final = 9
CLASSES, NORM = 100, (128, 64, 16, 16)


class Pair(NamedTuple):
    """Two ways to one result, and how many times the second was faster when the record was made."""

    name: str
    recorded: float
    slow: Callable[[], object]
    fast: Callable[[], object]
    repeats: int = 1  # calls a sample


class Ratio(NamedTuple):
    """What a pair has now."""

    name: str
    recorded: float
    found: float

    @property
    def holds(self) -> bool:
        return self.found >= FLOOR * self.recorded

    def __str__(self) -> str:
        verdict = "" if self.holds else f", below {FLOOR:g} of it"
        return f"{self.name:38s} {self.found:5.2f}x now, {self.recorded:5.2f}x in the record{verdict}"


def recorded(name: str, column: str, **where: object) -> float:
    """A number of the row of record `name` that has these values."""
    rows: list[Row] = [row for row in load(name).rows if all(row.get(key) == value for key, value in where.items())]
    assert len(rows) == 1, f"{name} has {len(rows)} rows with {where}"
    return float(rows[0][column])  # type: ignore[arg-type]


def losses() -> Iterator[Pair]:
    for case in (
        bench_losses.student(448, CLASSES, torch.float32),
        bench_losses.teacher(64, 448, CLASSES, torch.float32, exact=True),
        bench_losses.cross_entropy(448, CLASSES, torch.float32),
    ):
        before = recorded("losses", "eager / fused", loss=case.name, classes=CLASSES, dtype="float32")
        yield Pair(case.name, before, case.variants["eager"], case.variants["fused"], repeats=20)


def norms() -> Iterator[Pair]:
    calls, _ = bench_batch_norm.variants(NORM, torch.float32)
    for call, column in {"forward and backward": "speedup", "jvp": "jvp speedup"}.items():
        before = recorded("batch-norm", column, dtype="float32", shape="x".join(map(str, NORM)))
        yield Pair(f"batch_norm_act, {call}", before, calls[f"{call}, torch"], calls[f"{call}, ours"])


def optimisers() -> Iterator[Pair]:
    calls = bench_optimiser.variants(bench_optimiser.wide_resnet_28_2())
    before = recorded("optimiser", "speedup", network="WRN-28-2", op="sgd_ema")
    yield Pair("sgd_ema", before, calls["torch, fused step and lerp"], calls["sgd_ema"], repeats=10)


def steps(folder: Path) -> Iterator[Pair]:
    bench_features.write_store(folder)
    before = recorded("feature_steps", "speedup_median", variant="feedback exact")
    eager, taped = (bench_features.make_run(folder, "exact", graph) for graph in ("off", "auto"))
    yield Pair("step on stored features, from a tape", before, eager, taped, repeats=10)


def measure(pair: Pair) -> Ratio:
    """The median of the ratios within a round."""
    ways: Mapping[str, Callable[[], object]] = {"slow": pair.slow, "fast": pair.fast}
    found = sample(ways, rounds=ROUNDS, warmup=20 if pair.repeats > 1 else 3, repeats=pair.repeats)
    ratios = [slow.cpu / fast.cpu for slow, fast in zip(found["slow"], found["fast"], strict=True)]
    return Ratio(pair.name, pair.recorded, median(ratios))


def main() -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lost = []
    with tempfile.TemporaryDirectory() as scratch:
        for pairs in (losses(), norms(), optimisers(), steps(Path(scratch))):
            for pair in pairs:
                ratio = measure(pair)
                print(ratio, flush=True)
                lost += [] if ratio.holds else [ratio.name]
    if lost:
        print(f"Slower than the records allow: {'; '.join(lost)}. Run the benchmark itself to see whether it is so.")
    return 1 if lost else 0


if __name__ == "__main__":
    keep_memory("benchmarks.bench_check")
    sys.exit(main())
