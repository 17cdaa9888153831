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
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from statistics import median
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from benchmarks.bench_zero import count_traffic
from benchmarks.environment import ROOT
from benchmarks.records import Record, Row, Scalar, save
from fastmpl.analysis import planner
from fastmpl.analysis.fake_run import make_fake_batch
from fastmpl.analysis.planner import scale
from fastmpl.analysis.planner.cost import Shape
from fastmpl.analysis.planner.link import Link, time_messages
from fastmpl.analysis.planner.messages import Messages, count_messages, exchanged_of
from fastmpl.analysis.planner.plan import build_networks
from fastmpl.analysis.planner.state_bytes import Stage
from fastmpl.config import Config, load
from fastmpl.data.batch import Batch
from fastmpl.distributed.open_files import A_RANK
from fastmpl.distributed.ranks import Ranks
from fastmpl.run.build import Trainee, assemble
from tests.ranks.spawned import on_ranks

CLASSES: Final = 10
LARGE: Final = 1 << 20  # elements of the message that gives the bandwidth
RANKS: Final = (1, 2, 4)
NEAR: Final = 0.3  # share of its limit from which a need is named
PERCEPTRON: Final = {"student.model": "perceptron", "teacher.model": "perceptron"}
PERCEPTRON_WIDTHS: Final = {"student.width": 512, "teacher.width": 512}
WRN: Final = {"student.model": "wrn_10_2", "teacher.model": "wrn_10_2"}
SCALAR: Final = {"feedback.kind": "scalar", "method.targets": "sampled"}
SYNC: Final = {"student.norm": "sync", "teacher.norm": "sync"}


class Case(NamedTuple):
    """A network and its feedback, with the images of one rank."""

    keys: Mapping[str, Any]
    pixels: int
    labelled: int = 8
    unlabelled: int = 56

    def config(self, ranks: int = 1) -> Config:
        """The configuration whose batch is that of `ranks` ranks."""
        batch = {"data.batch_labelled": self.labelled * ranks, "data.batch_unlabelled": self.unlabelled * ranks}
        return load(ROOT / "launch/configs/digits.toml", {"system.graph": "off", **batch, **self.keys})

    @property
    def shape(self) -> Shape:
        return Shape(CLASSES, (3, self.pixels, self.pixels))


CASES: Final = {
    "perceptron, scalar": Case(PERCEPTRON | PERCEPTRON_WIDTHS | SCALAR, 8, 16, 112),
    "perceptron, exact": Case(PERCEPTRON | PERCEPTRON_WIDTHS, 8, 16, 112),
    "WRN-10-2, scalar": Case(WRN | SCALAR, 32),
    "WRN-10-2, exact": Case(WRN, 32),
    "WRN-10-2, exact, sync": Case(WRN | SYNC, 32),
}


class Found(NamedTuple):
    """Of one case, on rank 0."""

    step: float  # seconds
    sending: float  # seconds of its messages alone
    number: int
    bytes: int


def build_trainee(config: Config, shape: Shape, ranks: Ranks) -> Trainee:
    """What a run of `config` trains on one of `ranks`."""
    return assemble(
        config,
        classes=shape.classes,
        image_shape=shape.image,
        device=torch.device("cpu"),
        fixed_teacher=torch.nn.Module,
        ranks=ranks,
    )


def make_batch(config: Config, shape: Shape) -> Batch:
    """Noise, and targets of 0: neither costs nor messages depend on the images."""
    parts = make_fake_batch(config, shape.image, shape.classes)
    made = (part if part is None or not part.is_floating_point() else torch.randn_like(part) for part in parts)
    return Batch(*made)  # type: ignore[arg-type]


def plan_messages(config: Config, shape: Shape, ranks: int, stage: Stage | None = None) -> list[Messages]:
    """What is planned that `ranks` ranks send in a step. stage: of ZeRO; None: copies of the networks."""
    networks = {
        role: exchanged_of(network, config.feedback.depth if role == "student" else 0)
        for role, network in build_networks(config, shape).items()
    }
    return count_messages(config, networks, ranks, classes=shape.classes, stage=stage)


@dataclass(frozen=True)
class Measured:
    """A job of each rank: every case's step and its messages, timed; the messages counted."""

    cases: Mapping[str, Case]
    rounds: int

    def __call__(self, ranks: Ranks) -> dict[str, Found]:
        found = {}
        for name, case in self.cases.items():
            config = case.config()
            trainee, batch = build_trainee(config, case.shape, ranks), make_batch(config, case.shape)
            for _ in range(2):
                trainee.step(batch)
            steps = []
            for _ in range(self.rounds):
                start = time.perf_counter()
                trainee.step(batch)
                steps.append(time.perf_counter() - start)
            traffic = count_traffic(partial(trainee.step, batch))
            planned = plan_messages(case.config(ranks.size), case.shape, ranks.size)
            sending = [send(planned) for _ in range(self.rounds)]
            found[name] = Found(median(steps), median(sending), traffic.messages, traffic.bytes)
        return found


def send(messages: list[Messages]) -> float:
    """Seconds of these messages between the ranks, one after another."""
    made = [torch.zeros(each.elements // each.number) for each in messages for _ in range(each.number)]
    if messages:
        dist.barrier()
    start = time.perf_counter()
    for tensor in made:
        dist.all_reduce(tensor)
    return time.perf_counter() - start


def measure_link(ranks: Ranks) -> tuple[float, float]:
    """Latency in seconds and bandwidth in bytes a second of `fastmpl.analysis.planner.link`, between two ranks."""

    def time_one(elements: int) -> float:
        message = [Messages("any", "all-reduce", 1, elements)]
        return median(send(message) for _ in range(101))

    time_one(LARGE)
    small, large = time_one(1), time_one(LARGE)
    return small / 2, 4 * LARGE / (large - small)


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


def check(cases: Mapping[str, Case], rounds: int, link: Link, ranks: tuple[int, ...] = RANKS) -> list[Row]:
    """A row for each case and number of ranks: what is planned, and what was counted and measured."""
    cores = len(os.sched_getaffinity(0))
    found = {n: on_ranks(n, Measured(cases, rounds), seconds=300)[0] for n in ranks}
    rows: list[Row] = []
    for name, case in cases.items():
        for n in ranks:
            here, planned = found[n][name], plan_messages(case.config(n), case.shape, n)
            sending = time_messages(planned, n, link)
            step = found[ranks[0]][name].step * max(1, n / cores) + sending
            rows.append(
                {
                    "network, feedback": name,
                    "ranks": n,
                    "messages, planned": sum(each.number for each in planned),
                    "counted": here.number,
                    "bytes, planned": sum(each.bytes for each in planned),
                    "bytes, counted": here.bytes,
                    "messages ms, planned": f"{1e3 * sending:.2f}",
                    "messages ms, measured": f"{1e3 * here.sending:.2f}",
                    "step ms, planned": f"{1e3 * step:.1f}",
                    "step ms, measured": f"{1e3 * here.step:.1f}",
                    "error": f"{100 * (step / here.step - 1):+.0f} %",
                }
            )
    return rows


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
            needs = planner.plan_scale(config, found, fit, pace.seconds, images=count)
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


def check_all(rounds: int) -> Record:
    """The link between two ranks, and the steps of all cases."""
    latency, bandwidth = on_ranks(2, measure_link)[0]
    link = Link(between=bandwidth, inside=bandwidth, latency=latency, machine=max(RANKS))
    facts = {"latency_us": 1e6 * latency, "GB_a_second": bandwidth / 1e9, "rounds": rounds}
    return Record("scale_checked", "table", check(CASES, rounds, link), facts)


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
