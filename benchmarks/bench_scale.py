"""The cost model of many ranks, planned and checked: `python -m benchmarks.bench_scale`.

Checked (`scale_checked`): a perceptron and a small Wide ResNet on 1, 2 and 4 gloo ranks of this machine, one thread each,
the same images a rank. Messages and bytes of a step are counted and must be those of the plan. The link is measured once,
by all-reduces of two sizes between two ranks; the seconds of a step are then predicted from it and from the step of one
rank, times ranks / cores where cores are fewer, and stand beside the measured ones.

Planned (`scale`): the ResNet-50 of launch/configs/imagenet_10pct.toml on 1 to 1,024 ranks, with so many images a rank
that 64 ranks have the published batch, and lists of 1.28 to 130 million images. Nothing of this part is timed but the
store of rank 0, which answers the heartbeats. About three minutes.
"""

import argparse
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from benchmarks.environment import ROOT
from benchmarks.records import Record, Row, Scalar, save
from benchmarks.scale_checks import check_all
from fastmpl.analysis import planner
from fastmpl.analysis.planner import scale
from fastmpl.config import Config, load
from fastmpl.distributed.open_files import A_RANK

NEAR: Final = 0.3  # share of its limit from which a need is named


def _ask(port: int, seconds: float, results: Any) -> None:
    store = TCPStore("127.0.0.1", port, 2, is_master=False, timeout=timedelta(seconds=30))
    calls, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        store.set("place/1", "step 7 at ranks.py:all_reduce_sum_:61")
        store.add("beat/1", 1)
        store.check(["stop"])
        calls += 3
    results.put(calls)


def measure_store(seconds: float = 2.0) -> float:
    """CPU seconds of the rank that serves the store, for one call of another."""
    store = TCPStore("127.0.0.1", 0, 2, is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    job = context.Process(target=_ask, args=(store.port, seconds, results))
    job.start()
    while store.add("beat/1", 0) == 0:  # what starts the other process is not looked at
        time.sleep(0.01)
    start = time.process_time()
    calls = int(results.get())
    used = time.process_time() - start
    job.join()
    return used / calls


class Planned(NamedTuple):
    """A number of GPUs and the images of each."""

    ranks: int
    labelled: int = 16
    unlabelled: int = 240

    def config(self, keys: Mapping[str, Any]) -> Config:
        batch = {
            "data.batch_labelled": self.labelled * self.ranks,
            "data.batch_unlabelled": self.unlabelled * self.ranks,
        }
        return load(ROOT / "launch/configs/imagenet_10pct.toml", {**batch, **keys})


def plan_ranks(
    cases: Sequence[Planned], images: Sequence[int], keys: Mapping[str, Any] = MappingProxyType({})
) -> list[Row]:
    """A row for each case and number of images: what a step needs, and what is near its limit. keys: other ones."""
    rows: list[Row] = []
    for case in cases:
        n, config = case.ranks, case.config(keys)
        found = planner.plan_memory(config, ranks=n, memory=80 * 2**30, classes=1000, schedules=("split",))
        (fit, *_) = found.fits
        pace = planner.pace_at_share(config, found.costs[fit.schedule].flops, "h100", 0.3)
        for count in images:
            needs = planner.plan_scale(config, found, fit, pace, images=count)
            here = min(n, needs.link.machine)
            near = [need for need in needs.needs if need.load >= NEAR] or needs.needs[:1]
            rows.append(
                {
                    "GPUs": n,
                    "images of each": f"{case.labelled} + {case.unlabelled}",
                    "images": f"{count / 1e6:.4g} M",
                    "messages": sum(each.number for each in needs.messages),
                    "MB": f"{sum(each.bytes for each in needs.messages) / 1e6:.0f}",
                    "ms": f"{1e3 * needs.sending:.2f}",
                    "of a step": f"{100 * needs.share:.1f} %",
                    "images/s": f"{n * needs.rate:,.0f}",
                    "cores a machine": f"{here * needs.rate * scale.DECODED:.0f}",
                    "GB/s read, a machine": f"{here * needs.rate * scale.ENCODED / 1e9:.2f}",
                    "GB of lists, a machine": f"{here * count * scale.LISTED / 1e9:.1f}",
                    "seconds to list": f"{count * scale.LISTING:.0f}",
                    "share of the limit": ", ".join(f"{need.name} {100 * need.load:.0f} %" for need in near),
                }
            )
    return rows


def list_parts() -> list[Row]:
    """What else grows with ranks and images, as `fastmpl.analysis.planner.scale` has it; a test holds it to the records."""
    parts = (
        ("decoding on CPUs", "images a second", f"{1e3 * scale.DECODED:g} ms of a core", "loader"),
        ("reading", "images a second", f"{scale.ENCODED / 1e3:g} kB, a JPEG of 500 x 375 pixels", "loader"),
        ("memory for the list of images", "images, in each rank", f"{scale.LISTED} bytes", "listing"),
        ("time to list them", "images, in each rank", f"{1e6 * scale.LISTING:g} us", "listing"),
        (
            "a store of the 16 likeliest classes",
            "images; ranks of a machine share it",
            f"{scale.STORED} bytes",
            "store",
        ),
        ("calls of rank 0's store", "ranks", f"{scale.ASKED} a second, {1e6 * scale.ANSWERED:g} us of a core", "scale"),
        ("open files", "ranks, in each rank", f"{A_RANK}", "counted"),
    )
    return [dict(zip(("what", "grows with", "by", "record"), part, strict=True)) for part in parts]


def plan_all() -> list[Record]:
    """The plans, and what they are made of."""
    facts: dict[str, Scalar] = {"store_call_us": 1e6 * measure_store(), "gpu": "h100", "share": 0.3}
    rows = plan_ranks([Planned(n) for n in (1, 8, 64, 1024)], (1_281_167, 14_000_000, 130_000_000))
    rows += plan_ranks([Planned(1024, 1, 15)], (1_281_167,))
    return [Record("scale", "table", rows, facts), Record("scale_parts", "table", list_parts(), {})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", default=["checked", "planned"], help="checked, planned, or both")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    records = [check_all(asked.rounds)] if "checked" in asked.questions else []
    records += plan_all() if "planned" in asked.questions else []
    for record in records:
        for row in record.rows:
            print("  ".join(str(value) for value in row.values()), flush=True)
        print(save(record))


if __name__ == "__main__":
    main()
