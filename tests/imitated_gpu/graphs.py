"""CUDA graphs: a capture notes operators on the addresses they are given, a replay runs them again on those addresses.

Python is not asked in a replay: a number that it held stays what it was at the capture, and a tensor that was replaced is
not seen. Memory that a capture allocates is the graph's own: it is poisoned after the capture, and what is dead of it (a
later capture in the same pool may have been given it) before every replay.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.imitated_gpu.faults import CaptureRefusedError, HazardError, find_line
from tests.imitated_gpu.memory import Block, poison
from tests.imitated_gpu.streams import Event, Stamp, Stream
from tests.imitated_gpu.tensors import find_tensors


class Call(NamedTuple):
    """An operator on CPU tensors, with what it returned at the capture."""

    run: Any
    args: Any
    kwargs: Any
    out: list[Tensor]


class Pool:
    """Memory that captures share. `uses`: graphs that may need it; `is_open`: whether a capture still takes from it."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.uses = 0
        self.is_open = False

    def open(self) -> None:
        self.uses, self.is_open = self.uses + 1, True

    def close(self) -> None:
        if not self.is_open:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.is_open = False

    def release(self) -> None:
        assert self.uses > 0, "released more often than used"
        self.uses -= 1


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self, gpu: Any) -> None:
        self._gpu = gpu
        self.pool_: Pool | None = None
        self.calls: list[Call] = []
        self.replays = 0
        self.line = ""  # of the capture
        self.reads: dict[int, Block] = {}  # of memory from outside the pool
        self.writes: dict[int, Block] = {}
        self.host_reads: list[tuple[Any, str]] = []  # pinned memory that a replay copies from
        self.made: list[Block] = []
        self.own: set[int] = set()
        self.overwritten: list[Block] = []  # dead memory of the pool, which a replay may write
        self.saved: dict[int, tuple[Block, torch.UntypedStorage]] = {}
        self.streams: set[int] = set()
        self._uses: dict[int, tuple[Block, Stamp | None, dict[int, Stamp]]] = {}  # of earlier memory, from before

    def pool(self) -> Pool:
        assert self.pool_ is not None
        return self.pool_

    def enter(self, blocks: list[Block]) -> None:
        """Within a capture only the order within it counts; a replay is ordered as a whole."""
        for block in blocks:
            if id(block) not in self._uses:
                self._uses[id(block)] = block, block.writer, block.readers
                if id(block) not in self.own:
                    block.writer, block.readers = None, {}

    def note(self, call: Call, reads: list[Block], writes: list[Block]) -> None:
        """One operator more; called before it runs, so that what it writes can be put back."""
        for block in reads:
            if block.pool is not self.pool_:
                self.reads[id(block)] = block
        for block in writes:
            if block.pool is not self.pool_:
                self.writes[id(block)] = block
                self.save(block)
        self.calls.append(call)

    def save(self, block: Block) -> None:
        if id(block) not in self.saved:
            self.saved[id(block)] = block, block.storage.clone()

    def begin(self, pool: Pool | None, stream: Stream) -> None:
        self.pool_ = pool or Pool()
        self.streams = {stream.number}
        self.line = find_line()

    def end(self, *, failed: bool) -> None:
        """Nothing was computed: outer memory is put back, own memory is poisoned."""
        for block, before in self.saved.values():
            block.storage.copy_(before)
        self.saved.clear()
        for block, writer, readers in self._uses.values():
            block.writer, block.readers = writer, readers
        self._uses.clear()
        for block in self.made:
            block.writer, block.readers = None, {}
            poison(block.storage)
        assert self.pool_ is not None
        if failed:
            self.calls.clear()
            return
        self.overwritten = [block for block in [*self.pool_.blocks, *self.made] if not block.tensors]
        self.pool_.blocks += self.made

    def replay(self) -> None:
        gpu, stream = self._gpu, self._gpu.timeline.current()
        gpu.check_no_capture("replays a graph")
        gpu.memory.raise_found()
        self.replays += 1
        stamp = stream.launch(find_line())
        for block in [*self.reads.values(), *self.writes.values()]:
            if not block.tensors:
                raise HazardError(
                    f"The graph captured at {self.line} uses memory of {block.line}, which was freed at {block.freed}: "
                    "a replay would read or write what lies there now."
                )
        for tensor, line in self.host_reads:
            if tensor() is None:
                raise HazardError(f"The graph captured at {self.line} copies from pinned memory of {line}, now freed.")
        for block in self.reads.values():
            block.read(stamp, stream.clock)
        for block in [*self.writes.values(), *self.made]:
            block.write(stamp, stream.clock)
        for block in self.overwritten:
            poison(block.storage)
        with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
            for call in self.calls:
                self._run(call)

    def reset(self) -> None:
        self.calls.clear()

    @staticmethod
    def _run(call: Call) -> None:
        fresh = find_tensors(call.run(*call.args, **call.kwargs), [])
        for static, again in zip(call.out, fresh, strict=True):
            if static.untyped_storage()._cdata != again.untyped_storage()._cdata:
                static.copy_(again)


def check_wait(capture: Graph | None, stream: Stream, event: Event) -> None:
    """The rules of CUDA for waits across the border of a capture; a stream that waits for a captured one joins it."""
    inside = capture is not None and stream.number in capture.streams
    if inside and event.captured_by is not capture:
        raise CaptureRefusedError("operation not permitted: a captured stream waits for work outside the capture")
    if not inside and event.captured_by is not None:
        if event.captured_by is not capture:
            raise CaptureRefusedError("operation not permitted: a stream waits for an event of an ended capture")
        assert capture is not None
        capture.streams.add(stream.number)
