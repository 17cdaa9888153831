"""Steps of small networks on gloo ranks of this machine: their messages and seconds, measured and as planned.

The half of `benchmarks.bench_scale` that checks. Messages and bytes are counted; the link is measured between two ranks,
and the seconds of a step follow from it and from the step of one rank.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist

from benchmarks.bench_zero import count_traffic
from benchmarks.environment import ROOT
from benchmarks.records import Record, Row
from fastmpl.analysis.fake_run import make_fake_batch
from fastmpl.analysis.planner.cost import Shape
from fastmpl.analysis.planner.link import Link, time_messages
from fastmpl.analysis.planner.messages import Messages, count_messages, exchanged_of
from fastmpl.analysis.planner.plan import build_networks
from fastmpl.analysis.planner.state_bytes import Stage
from fastmpl.config import Config, load
from fastmpl.data.batch import Batch
from fastmpl.distributed.ranks import Ranks
from fastmpl.run.build import Trainee, assemble
from tests.ranks.spawned import on_ranks

CLASSES: Final = 10
LARGE: Final = 1 << 20  # elements of the message that gives the bandwidth
RANKS: Final = (1, 2, 4)
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


def check_all(rounds: int) -> Record:
    """The link between two ranks, and the steps of all cases."""
    latency, bandwidth = on_ranks(2, measure_link)[0]
    link = Link(between=bandwidth, inside=bandwidth, latency=latency, machine=max(RANKS))
    facts = {"latency_us": 1e6 * latency, "GB_a_second": bandwidth / 1e9, "rounds": rounds}
    return Record("scale_checked", "table", check(CASES, rounds, link), facts)
