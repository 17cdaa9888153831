"""Is the memory that fake tensors predict the memory that a step takes? `python -m benchmarks.bench_prediction`.

Whole steps of shipped configurations, on this CPU: the peak predicted on fake tensors (nothing computed), the peak of
live bytes while the step really runs, and what the allocator handed out meanwhile, scratch memory included.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.records import Record, Row, save
from fastmpl.analysis.accounting import measure, predict_cost
from fastmpl.analysis.fake_run import FakeRun
from fastmpl.config import Config, load

CONFIGS = Path(__file__).parents[1] / "launch" / "configs"


class Case(NamedTuple):
    """A shipped configuration, changed where its own step would take minutes here."""

    config: str
    changes: dict[str, object]
    classes: int
    image_shape: tuple[int, ...]

    def load(self) -> Config:
        return load(CONFIGS / f"{self.config}.toml", self.changes)

    @property
    def title(self) -> str:
        return " ".join([self.config, *(f"{key.rpartition('.')[2]}={value}" for key, value in self.changes.items())])


SMALL = {"data.batch_labelled": 8, "data.batch_unlabelled": 16}
CASES = [
    Case("two_moons", {}, 2, (2,)),
    Case("digits", {}, 10, (3, 8, 8)),
    Case("fashion_mnist_noisy", {}, 10, (3, 28, 28)),
    Case("fashion_mnist_500", {"system.deferred": True, "system.recompute": True}, 10, (3, 28, 28)),
    Case("cifar10_4k", SMALL | {"system.precision": "float32"}, 10, (3, 32, 32)),
    Case("cifar10_4k", SMALL | {"system.schedule": "joint", "system.deferred": True}, 10, (3, 32, 32)),
]


class Run(FakeRun):
    """The same, of real tensors: a batch of noise."""

    def __init__(self, config: Config, classes: int, image_shape: tuple[int, ...]) -> None:
        super().__init__(config, classes, image_shape)
        for part in self.batch:
            if part is not None and part.is_floating_point():
                part.normal_()


def allocated_peak(call: Callable[[], object]) -> int:
    """The most that torch's CPU allocator had handed out at once during `call`, beyond what it had before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


def row(case: Case) -> Row:
    config = case.load()

    def make() -> FakeRun:
        return FakeRun(config, case.classes, case.image_shape)

    foretold = predict_cost(make, FakeRun.step, FakeRun.list_held)
    run = Run(config, case.classes, case.image_shape)
    run.step()
    live = measure(run.step, run.list_held())
    allocated = live.base_bytes + allocated_peak(run.step)
    return {
        "config": case.title,
        "predicted MiB": round(foretold.peak_bytes / 2**20, 2),
        "live MiB": round(live.peak_bytes / 2**20, 2),
        "allocated MiB": round(allocated / 2**20, 2),
        "predicted of live": round(foretold.peak_bytes / live.peak_bytes, 4),
        "predicted of allocated": round(foretold.peak_bytes / allocated, 4),
        "operators, predicted": foretold.operations,
        "operators": live.operations,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = []
    for case in CASES:
        found.append(row(case))
        print("  ".join(str(value) for value in found[-1].values()), flush=True)
    print(save(Record("memory_prediction", "table", found, {"tensors": "fake against real, on a CPU"})))


if __name__ == "__main__":
    main()
