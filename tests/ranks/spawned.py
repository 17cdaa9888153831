"""Runs a function on several gloo ranks of this machine, each a process of its own, and gives what each returned."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from fastmpl.distributed.ranks import Ranks

SLOW_IMPORTS = (
    "torch",
    "torch._dynamo",
    "torch._decomp.decompositions_for_jvp",
    "torch.utils.tensorboard",
    "fastmpl.data.memory.pipeline",
)
SECONDS = 60  # until a rank that does not answer is given up


def free_port() -> int:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def on_ranks(
    size: int,
    function: Callable[[Ranks], Any],
    *,
    grouped: bool = True,
    killed: int | None = None,
    seconds: float = 2 * SECONDS,
) -> list[Any]:
    """`function(ranks)` on `size` ranks; fails with the traceback of the first that raised.

    grouped: whether they are in a process group when it is called. killed: a rank that is not going to return.
    seconds: until they are given up.
    """
    # a server that has imported torch once forks the ranks: they start in milliseconds, with no thread copied
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*SLOW_IMPORTS, "tests.ranks.runs"])
    results, port = context.Queue(), free_port() if grouped else 0
    processes = [context.Process(target=_rank, args=(rank, size, port, function, results)) for rank in range(size)]
    for process in processes:
        process.start()
    try:
        found: dict[int, Any] = {}
        while len(found) < size - (killed is not None):
            rank, value, fault = results.get(timeout=seconds)
            assert fault is None, f"rank {rank}:\n{fault}"
            found[rank] = value
        if killed is not None:
            processes[killed].kill()  # one that stands still does not end by itself
        for rank, process in enumerate(processes):
            process.join(SECONDS)
            assert process.exitcode == (-9 if rank == killed else 0), f"rank {rank} ended with {process.exitcode}"
    finally:
        for process in processes:
            process.kill()
    return [found[rank] for rank in sorted(found)]


def _rank(rank: int, size: int, port: int, function: Callable[[Ranks], Any], results: Any) -> None:
    torch.set_num_threads(1)
    if port:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS))
    try:
        # as numpy: a tensor would travel through shared memory that ends with its rank
        results.put((rank, _arrays(function(Ranks(rank, size))), None))
    except Exception:
        results.put((rank, None, traceback.format_exc()))
    if port:
        dist.destroy_process_group()


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _arrays(item) for name, item in value.items()}
    return value.detach().numpy().copy() if isinstance(value, torch.Tensor) else value
