"""The throughput of several CPU ranks against one, and where the rest goes: `python -m benchmarks.bench_ranks`.

Each rank is a process with one thread, pinned to a core of its own, and takes the default step of WRN-28-2 on 16 labelled
and 112 unlabelled images of its own (weak scaling). The same processes take turns in three ways, so that what else the
machine does hits all alike:

    one rank            the first rank steps, the others sleep
    without messages    all ranks step at once, each by itself: what the shared memory and caches of the machine allow
    all ranks           all ranks step at once and hold the same weights: what a run on several ranks does

A way's throughput is its images over the wall seconds until the last rank is done, against one rank's in the same round.
In further steps every message is preceded by a barrier, which divides its time into the wait for the slowest rank and the
transfer. About three minutes on two quiet cores.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from statistics import median
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.bench_step import LARGE
from benchmarks.environment import keep_memory
from benchmarks.records import Record, Row, Scalar, save
from benchmarks.steps import CPU, Size, Step
from fastmpl.distributed.ranks import Ranks
from fastmpl.learners.arithmetic import Precision, computes_bf16

ONE, APART, ALL = "one rank", "without messages", "all ranks"
WAYS: Final = (ONE, APART, ALL)
SECONDS: Final = 600  # until a rank that does not answer is given up


class Sample(NamedTuple):
    """Of one step on one rank."""

    wall: float
    cpu: float  # all threads of the process, those of gloo included


class Messages(NamedTuple):
    """Of one step on one rank."""

    messages: int
    bytes: int
    waiting: float  # seconds for the slowest rank, before the messages
    transfer: float  # seconds from then on


class Found(NamedTuple):
    """By one rank: a sample a round and way, and the messages of further steps."""

    samples: dict[str, list[Sample]]
    messages: list[Messages]


class MessageTimes(TorchDispatchMode):
    """Counts and times the messages of a step. Each is waited for, so none overlaps with another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = self.bytes = 0
        self.waiting = self.transfer = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "c10d":
            return func(*args, **(kwargs or {}))
        start = time.perf_counter()
        dist.barrier()
        together = time.perf_counter()
        done = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(done):
            if isinstance(leaf, torch.ScriptObject):
                leaf.wait()  # type: ignore[attr-defined]
        self.count += 1
        self.bytes += sum(leaf.nbytes for leaf in tree_leaves(args[0]) if isinstance(leaf, Tensor))
        self.waiting += together - start
        self.transfer += time.perf_counter() - together
        return done


def time_call(call: Callable[[], object]) -> Sample:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def time_messages(step: Step) -> Messages:
    times = MessageTimes()
    with times:
        step()
    return Messages(times.count, times.bytes, times.waiting, times.transfer)


def make_steps(size: Size, ranks: Ranks, precision: Precision) -> dict[str, Step]:
    """A step that speaks to the other ranks, and one that does not; the networks of all start from the same weights."""
    torch.manual_seed(ranks.rank)  # of the images
    together = Step(size, precision=precision, channels_last=True, ranks=ranks)
    alone = Step(size, precision=precision, channels_last=True)
    return {ONE: alone, APART: alone, ALL: together}


def measure(size: Size, ranks: Ranks, gate: Barrier, precision: Precision, rounds: int, looked_at: int) -> Found:
    """What this rank finds; every rank calls it. gate: holds all ranks without using a core."""
    steps = make_steps(size, ranks, precision)
    samples: dict[str, list[Sample]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in (*WAYS[number % len(WAYS) :], *WAYS[: number % len(WAYS)]):
            gate.wait(SECONDS)
            if way != ONE or ranks.rank == 0:
                samples[way].append(time_call(steps[way]))
            gate.wait(SECONDS)
    messages = [time_messages(steps[ALL]) for _ in range(looked_at)]
    return Found({way: found[1:] for way, found in samples.items()}, messages)  # the first round warms up


def run_rank(rank: int, ranks: int, port: int, gate: Barrier, results: Any, **asked: Any) -> None:
    """One rank, pinned to one core."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=SECONDS))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    results.put((rank, measure(ranks=Ranks(rank, ranks), gate=gate, **asked)))
    gate.wait(SECONDS)
    dist.destroy_process_group()


def run_ranks(ranks: int, **asked: Any) -> list[Found]:
    """What each rank finds."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    results, gate = context.Queue(), context.Barrier(ranks)
    jobs = [
        context.Process(target=run_rank, args=(rank, ranks, store.port, gate, results), kwargs=asked)
        for rank in range(ranks)
    ]
    for job in jobs:
        job.start()
    found = dict(results.get(timeout=SECONDS) for _ in jobs)
    for job in jobs:
        job.join()
    return [found[rank] for rank in range(ranks)]


def seconds(found: Sequence[Found], way: str, clock: str = "wall") -> list[float]:
    """By round, until the last rank is done."""
    each = [[getattr(sample, clock) for sample in rank.samples[way]] for rank in found if rank.samples[way]]
    return [max(round_) for round_ in zip(*each, strict=True)]


def rows(found: Sequence[Found]) -> list[Row]:
    """One a way."""
    alone, alone_cpu, made = seconds(found, ONE), seconds(found, ONE, "cpu"), list[Row]()
    for way in WAYS:
        taken, cpu = seconds(found, way), seconds(found, way, "cpu")
        ranks = 1 if way == ONE else len(found)
        gains = sorted(ranks * one / all_ for one, all_ in zip(alone, taken, strict=True))
        made.append(
            {
                "ranks": way,
                "seconds a step": f"{median(taken):.3f}",
                "throughput of one rank's": f"{median(gains):.2f}x ({gains[0]:.2f} to {gains[-1]:.2f})",
                "CPU seconds of one rank's": f"{median(b / a for a, b in zip(alone_cpu, cpu, strict=True)):.2f}x",
                **_of_messages([message for rank in found for message in rank.messages] if way == ALL else []),
                "wall": taken,
                "cpu": cpu,
            }
        )
    return made


def _of_messages(messages: Sequence[Messages]) -> Row:
    if not messages:
        return dict.fromkeys(("messages a step", "MB a step", "ms of transfer", "ms of waiting"), "")
    return {
        "messages a step": messages[0].messages,
        "MB a step": f"{messages[0].bytes / 1e6:.1f}",
        "ms of transfer": f"{1e3 * median(each.transfer for each in messages):.1f}",
        "ms of waiting": f"{1e3 * median(each.waiting for each in messages):.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    keep_memory("benchmarks.bench_ranks")
    precision: Precision = "bf16" if computes_bf16(CPU) else "float32"
    made = rows(run_ranks(asked.ranks, size=LARGE, precision=precision, rounds=asked.rounds, looked_at=5))
    for row in made:
        print("  ".join(str(value) for value in row.values() if not isinstance(value, list)))
    config: dict[str, Scalar] = {
        "ranks": asked.ranks,
        "rounds": asked.rounds,
        "threads a rank": 1,
        "precision": precision,
    }
    config |= {"network": LARGE.model, "B": LARGE.labelled, "U": LARGE.unlabelled, "pixels": LARGE.pixels}
    print(save(Record("ranks", "table", made, config)))


if __name__ == "__main__":
    main()
