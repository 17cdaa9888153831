"""Seconds of device work, by CUDA events; on a CPU by the wall clock.

A kernel of a few microseconds is shorter than the launch that starts it. So calls are also timed inside a CUDA graph,
whose replay has no host in between: that time is the kernels', and the time of plain calls beside it is the launches'.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

Call = Callable[[], object]


class Spread(NamedTuple):
    """Seconds of one call: median and quartiles over samples."""

    low: float
    median: float
    high: float


def spread(samples: list[float]) -> Spread:
    return Spread(*(float(q) for q in np.quantile(samples, (0.25, 0.5, 0.75))))


def elapsed(call: Call, device: torch.device) -> float:
    """Seconds between the device's start and end of what `call` asks of it."""
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begun.record()
    call()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3


def time_calls(call: Call, device: torch.device, *, samples: int, calls: int, warmup: int = 3) -> Spread:
    """`samples` times of `calls` calls, a call's share each."""
    for _ in range(warmup):
        call()

    def repeat() -> None:
        for _ in range(calls):
            call()

    return spread([elapsed(repeat, device) / calls for _ in range(samples)])


def time_interleaved(
    variants: dict[str, Call], device: torch.device, *, samples: int, warmup: int
) -> dict[str, Spread]:
    """Times of several variants, a sample of each in turn, so that a change of the clocks hits all alike."""
    for call in variants.values():
        for _ in range(warmup):
            call()
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(samples):
        for name, call in variants.items():
            found[name].append(elapsed(call, device))
    return {name: spread(times) for name, times in found.items()}


def captured(call: Call, device: torch.device, calls: int = 1) -> Call:
    """`calls` calls as one CUDA graph; on a CPU, which has none, the calls themselves."""

    def repeat() -> None:
        for _ in range(calls):
            call()

    if device.type != "cuda":
        return repeat
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        repeat()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        repeat()
    return graph.replay
