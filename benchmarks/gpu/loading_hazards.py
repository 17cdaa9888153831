"""A step reads the pictures of its own batch, and no other's, however late the device is and however early memory returns.

The maker here does what DALI does: it lends memory, and writes over it as soon as the last tensor that refers to it is
gone. Every picture of batch n holds the number n, and so does every label; the step writes down what it saw.
"""

import queue
import time
import weakref
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from benchmarks.gpu.cases import Case, Cases, Setting
from benchmarks.gpu.runs import capture_calls
from benchmarks.records import Row
from fastmpl.data.batch import Batch
from fastmpl.data.prefetch import Prefetcher
from fastmpl.step.context import StepContext
from fastmpl.step.eager import EagerStep, Ramp
from fastmpl.step.step_graph import WARMUP, GraphedStep
from fastmpl.step.step_metrics import StepMetrics, zero_metrics

STEPS = WARMUP + 40
MOST = 10  # batches in memory beside those made ahead: some more than a host has that is two steps ahead of the device
CYCLES = 5_000_000  # of the device's clock that a step takes at least, so that the host runs ahead of it


class LendingMaker:
    """Batches in memory that is used again once nobody refers to the batch."""

    def __init__(self, device: torch.device, images: int, side: int, *, is_imitated: bool) -> None:
        self._is_imitated = is_imitated
        self._device, self._shape, self._number = device, (2 * images, 3, side, side), 0
        self._free: queue.LifoQueue[Tensor] = queue.LifoQueue()  # what came back last is written first
        self.made = 0  # batches of memory

    def __call__(self) -> Batch:
        try:
            memory = self._free.get_nowait()
        except queue.Empty:
            memory = torch.empty(self._shape, device=self._device)
            self.made += 1
        memory.fill_(float(self._number))
        weak, strong = self._lend(memory).chunk(2)
        targets = torch.full((len(weak),), self._number, device=self._device)
        self._number += 1
        return Batch(weak, targets, targets, weak, strong, targets)

    def _lend(self, memory: Tensor) -> Tensor:
        """The memory as a storage of its own, as DALI's is: record_stream does not hold it for a stream."""
        if self._is_imitated:  # an imitated GPU has no DLPack
            lent = memory.clone()
            weakref.finalize(lent, self._free.put, memory)
            return lent
        lent = from_dlpack(memory)
        weakref.finalize(lent.untyped_storage(), self._free.put, memory)
        return lent


class Sight:
    """What an EagerStep takes here: it writes down the smallest and largest value of every part of the step's batch."""

    def __init__(self, device: torch.device, *, is_slow: bool) -> None:
        self.seen = torch.full((STEPS, 6), -1.0, device=device)
        self._is_slow = is_slow

    def __call__(self, parts: Sequence[Batch], context: StepContext, baseline: Tensor) -> StepMetrics:
        if self._is_slow:
            torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
        (batch,) = parts
        values = [value for part in (batch.weak, batch.strong, batch.targets.float()) for value in part.aminmax()]
        self.seen.index_copy_(0, context.step.view(1), torch.stack(values).unsqueeze(0))
        return zero_metrics(self.seen)


def describe_pile(made: int, ahead: int) -> str:
    """Says where more batches were in memory at once than the steps need that are queued; "" where not."""
    return "" if made <= ahead + MOST else f"{made} batches were in memory at once: the host is too many steps ahead"


def check_batches(setting: Setting, ahead: int, graphed: bool) -> Row:
    """Runs the loader's thread and the step side by side, and reads at the end what each step saw."""
    images, side = (4, 8) if setting.is_imitated else (256, 64)
    with capture_calls(setting) as device:
        maker = LendingMaker(device, images, side, is_imitated=setting.is_imitated)
        sight = Sight(device, is_slow=not setting.is_imitated)
        step = EagerStep(sight, seed=0, ramp=Ramp(), device=device)
        batches = Prefetcher(maker, ahead, device)
        began = time.perf_counter()
        try:
            graph = GraphedStep(step, device) if graphed else None
            for _ in range(STEPS):
                if graph is None:
                    step(batches.next())
                else:
                    graph(graph.load_next(batches.next))
            host = time.perf_counter() - began
            seen = sight.seen.cpu()
        finally:
            batches.close()
    expected = torch.arange(STEPS, dtype=torch.float32).unsqueeze(1).expand(-1, seen.shape[1])
    wrong = (seen != expected).any(1).nonzero().flatten().tolist()
    why = f"{len(wrong)} steps saw another batch: step {wrong[0]} saw {seen[wrong[0]].tolist()}" if wrong else ""
    if graphed and not setting.is_imitated:  # an imitated GPU is late with its events
        why = why or describe_pile(maker.made, ahead)
    return {
        "passed": not why,
        "why": why,
        "steps": STEPS,
        "batches_of_memory": maker.made,
        "host_seconds": host,
        "seconds_until_seen": time.perf_counter() - began,
    }


def cases(setting: Setting) -> Cases:
    return [
        Case(f"{way}, {ahead} batches ahead", partial(check_batches, setting, ahead, graphed), 45)
        for way, graphed in (("eager", False), ("captured", True))
        for ahead in (1, 0)
    ]
