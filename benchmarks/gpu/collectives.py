"""Collectives of one rank, eager and captured: NCCL on a GPU, gloo where the CPU stands in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from benchmarks.gpu.cases import Case, Cases, MissingError, Setting
from benchmarks.gpu.timing import time_calls
from benchmarks.records import Row

Reduce = Callable[[Tensor], object]


@contextmanager
def one_rank(setting: Setting) -> Iterator[None]:
    """A process group of this process alone, which meets in memory: no port and no network."""
    if not dist.is_available():
        raise MissingError("this torch has no torch.distributed")
    if not setting.is_imitated and not dist.is_nccl_available():
        raise MissingError("this torch has no NCCL")
    dist.init_process_group(
        "gloo" if setting.is_imitated else "nccl",
        store=HashStore(),
        rank=0,
        world_size=1,
        timeout=timedelta(seconds=30),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _reduce_later(x: Tensor) -> None:
    work = dist.all_reduce(x, async_op=True)
    assert work is not None
    work.wait()


def _gather(x: Tensor) -> None:
    every = x.new_empty(1, *x.shape)
    dist.all_gather(list(every.unbind()), x)
    x.copy_(every[0])


def _scatter(x: Tensor) -> None:
    part = torch.empty_like(x)
    dist.reduce_scatter(part, [x])
    x.copy_(part)


COLLECTIVES: dict[str, Reduce] = {"all-reduce": _reduce_later, "all-gather": _gather, "reduce-scatter": _scatter}


def _elements(setting: Setting) -> int:
    return 1 << (12 if setting.is_imitated else 24)


def check_eager(collective: Reduce, setting: Setting) -> Row:
    """One rank's sum is what it sent."""
    with one_rank(setting):
        sent = torch.randn(_elements(setting), device=setting.device)
        given = sent.clone()
        collective(given)
        seconds = time_calls(lambda: collective(given), setting.device, samples=5, calls=3).median
        return {"passed": torch.equal(given, sent), "bytes": sent.nbytes, "seconds_of_one": seconds}


def check_captured(collective: Reduce, setting: Setting) -> Row:
    """Between two products in one CUDA graph: every replay sees what its inputs hold by then."""
    if setting.is_imitated:
        raise MissingError("needs a GPU: gloo's messages are no part of a graph")
    device = setting.device
    with one_rank(setting):
        static = torch.ones(_elements(setting), device=device)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(11):  # NCCL makes its buffers in the first calls
                warm = static * 2
                collective(warm)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            made = static * 2
            collective(made)
            found = made + 1
        wrong = 0
        for number in range(20):
            static.fill_(float(number))
            graph.replay()
            wrong += not bool((found == 2 * number + 1).all())
        graph.reset()  # NCCL ends no group while a graph holds its collectives
        return {"passed": wrong == 0, "replays": 20, "wrong": wrong}


def cases(setting: Setting) -> Cases:
    return [
        *(Case(f"{name}, eager", partial(check_eager, run, setting)) for name, run in COLLECTIVES.items()),
        *(Case(f"{name}, captured", partial(check_captured, run, setting)) for name, run in COLLECTIVES.items()),
    ]
