"""What DeepSpeed's stages cost beside copies of the networks on each rank: `python -m benchmarks.bench_zero`.

Two gloo ranks of this machine take the same steps of a Wide ResNet-10-2 with each engine in turn, so that what else the
machine does hits all alike. Time is CPU seconds of the first rank, against copies in the same round. Messages, their
bytes (of the larger side of each), and reads of a 0-D tensor by the host are counted, not timed: a read that waits for
nothing on a CPU waits for the device on a GPU. Scalar reductions are messages of a few numbers; two of them are the norms
of sharded gradients. About two minutes.
"""

import argparse
import gc
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from contextlib import closing
from statistics import median
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.records import Record, Row, save
from benchmarks.steps import NESTEROV, Size
from fastmpl.config import SystemConfig
from fastmpl.data.batch import Batch
from fastmpl.distributed.ranks import Ranks
from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.zero.learner import ZeroLearner
from fastmpl.methods.feedback import Kind
from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.methods.uda import Consistency
from fastmpl.step.context import make_context
from fastmpl.step.mpl_step import MplStep
from fastmpl.step.order import split

SCALARS: Final = 4  # numbers up to which a message is a scalar reduction
COPIES: Final = "copies"
SIZE: Final = Size("wrn_10_2", 32, 8, 56)  # the launcher's ranks share two cores: a step of a second would be too long
KINDS: Final[tuple[Kind, ...]] = ("scalar", "exact")


class Traffic(TorchDispatchMode):
    """Counts what leaves a rank and what its host reads."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.messages = self.bytes = self.scalars = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            sides = [[leaf for leaf in tree_leaves(side) if isinstance(leaf, Tensor)] for side in args]
            sent = max(sum(tensor.nbytes for tensor in side) for side in sides)
            if sent:
                self.messages += 1
                self.bytes += sent
                few = max(sum(tensor.numel() for tensor in side) for side in sides) <= SCALARS
                self.scalars += few and func.overloadpacket.__name__ == "allreduce_"  # a small layer is gathered
        elif func is torch.ops.aten._local_scalar_dense.default:
            self.reads += 1
        return func(*args, **(kwargs or {}))


class Pair:
    """A teacher, a student and the steps they take on this rank's part of one batch."""

    def __init__(self, size: Size, stage: int | None, kind: Kind, ranks: Ranks) -> None:
        def learner(seed: int) -> PlainLearner | ZeroLearner:
            common: dict[str, Any] = {"steps": 1000, "ranks": ranks, "average": 0.99 if seed == 1 else 0.0}
            if stage is None:
                return PlainLearner(size.network(seed), NESTEROV, **common)
            system = SystemConfig(engine="zero", zero_stage=stage)
            return ZeroLearner(size.network(seed), NESTEROV, system, **common)

        self.student, self.teacher = learner(1), learner(2)
        whole = size.batch()
        parts = (None if rows is None else rows.chunk(ranks.size)[ranks.rank] for rows in whole)
        self.batch = Batch(*parts)  # type: ignore[arg-type]
        self.method = MetaPseudoLabels(
            unlabelled=size.unlabelled,
            targets="soft" if kind == "exact" else "sampled",
            feedback=Feedback(kind),
            consistency=Consistency(),
        )
        self.rank, self.taken = ranks.rank, 0

    def __call__(self) -> None:
        context = make_context(torch.tensor(1), torch.tensor(self.taken), torch.ones(()), rank=self.rank)
        self.taken += 1
        parts, baseline = [self.batch], torch.zeros(())
        MplStep(self.method, split(self.method), self.teacher, self.student)(parts, context, baseline)

    def close(self) -> None:
        self.student.close()
        self.teacher.close()


class Found(NamedTuple):
    """Of one engine and kind, on the first rank."""

    seconds: list[float]
    messages: int
    bytes: int
    scalars: int
    reads: int


def name_of(stage: int | None) -> str:
    return COPIES if stage is None else f"ZeRO {stage}"


def count_traffic(step: Callable[[], object]) -> Traffic:
    """Counts the messages, bytes and host reads of one step."""
    traffic = Traffic()
    with traffic:
        step()
    return traffic


def measure_engines(ranks: Ranks, size: Size, rounds: int) -> dict[tuple[str, str], Found]:
    """Each engine and kind, interleaved; the first two steps of each are not looked at."""
    found = {}
    for kind in KINDS:
        pairs = {name_of(stage): Pair(size, stage, kind, ranks) for stage in (None, 0, 1, 2, 3)}
        for pair in pairs.values():
            pair()
            pair()
        seconds: dict[str, list[float]] = {name: [] for name in pairs}
        for _ in range(rounds):
            for name, pair in pairs.items():
                start = time.process_time()
                pair()
                seconds[name].append(time.process_time() - start)
        for name, pair in pairs.items():
            traffic = count_traffic(pair)
            found[name, str(kind)] = Found(
                seconds[name], traffic.messages, traffic.bytes, traffic.scalars, traffic.reads
            )
            pair.close()
            if ranks.rank == 0:
                print(name, kind, found[name, str(kind)]._replace(seconds=[]), flush=True)
    return found


def run_rank(rank: int, size: int, port: int, rounds: int, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", rank=rank, world_size=size)
    gc.freeze()  # DeepSpeed collects all garbage for each engine
    found = measure_engines(Ranks(rank, size), SIZE, rounds)
    if rank == 0:
        results.put(found)
    dist.destroy_process_group()


def rows(found: dict[tuple[str, str], Found]) -> list[Row]:
    made: list[Row] = []
    for (name, kind), each in found.items():
        against = [a / b for a, b in zip(each.seconds, found[COPIES, kind].seconds, strict=True)]
        made.append(
            {
                "engine": name,
                "feedback": kind,
                "CPU seconds a step": f"{median(each.seconds):.3f}",
                "against copies": f"{median(against):.2f} ({min(against):.2f} to {max(against):.2f})",
                "messages a step": each.messages,
                "MB a step": f"{each.bytes / 1e6:.1f}",
                "host reads a step": each.reads,
                "scalar reductions": each.scalars,
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ranks", type=int, default=2)
    asked = parser.parse_args()
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    jobs = [
        context.Process(target=run_rank, args=(rank, asked.ranks, port, asked.rounds, results))
        for rank in range(asked.ranks)
    ]
    for job in jobs:
        job.start()
    found = results.get()
    for job in jobs:
        job.join()
    made = rows(found)
    for row in made:
        print("  ".join(str(value) for value in row.values()))
    facts = {"ranks": asked.ranks, "rounds": asked.rounds, "network": SIZE.model, "labelled": SIZE.labelled}
    print(save(Record("zero", "table", made, {**facts, "unlabelled": SIZE.unlabelled, "pixels": SIZE.pixels})))


if __name__ == "__main__":
    main()
