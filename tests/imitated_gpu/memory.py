"""The allocator of the imitated GPU: who wrote and read each block last, and what happens when it is freed.

As torch's caching allocator does, a block that is freed is given to the next allocation of its own stream and pool. If
another stream may still use it then, that is a hazard, unless `record_stream` has named this stream. Freed bytes are
overwritten with ones (NaN as floating-point numbers, -1 as integers), so that a stale address gives wrong numbers.
"""

import weakref
from collections import deque
from typing import Any, Final, Literal

import torch
from torch import Tensor

from tests.imitated_gpu.faults import HazardError, find_line
from tests.imitated_gpu.streams import Clock, Stamp, Stream

Owner = Literal["torch", "DALI"]
POISON: Final = 0xFF
BURIED: Final = 64 << 20  # bytes of freed blocks whose addresses stay valid, so that a stale pointer reads poison


def poison(storage: torch.UntypedStorage) -> None:
    if storage.nbytes():
        torch.empty(0, dtype=torch.uint8).set_(storage).fill_(POISON)


class Block:
    """A piece of device memory: a storage of the CPU that stands for it."""

    def __init__(self, storage: torch.UntypedStorage, stream: Stream, pool: object, line: str, owner: Owner) -> None:
        self.storage, self.stream, self.pool, self.line, self.owner = storage, stream, pool, line, owner
        self.writer: Stamp | None = None
        self.readers: dict[int, Stamp] = {}  # the last reader of each stream since the last write
        self.recorded: set[int] = set()  # streams that record_stream named
        self.tensors = 0  # that share it
        self.freed = ""  # the line that freed it

    @property
    def uses(self) -> list[Stamp]:
        return [*([self.writer] if self.writer else []), *self.readers.values()]

    def read(self, stamp: Stamp, clock: Clock) -> None:
        """Raises HazardError if the write is not ordered before."""
        if self.writer is not None and not self.writer.is_before(clock):
            raise HazardError(f"{stamp} reads memory of {self.line} that {self.writer} may still be writing.")
        self.readers[stamp.stream] = stamp

    def write(self, stamp: Stamp, clock: Clock) -> None:
        """Raises HazardError if an earlier use is not ordered before."""
        for use in self.uses:
            if not use.is_before(clock):
                verb = "writing" if use is self.writer else "reading"
                raise HazardError(f"{stamp} writes memory of {self.line} that {use} may still be {verb}.")
        self.writer, self.readers = stamp, {}


class Memory:
    """All blocks. `live` and `peak` are bytes of those that some tensor shares."""

    def __init__(self, host: Clock) -> None:
        self._host = host
        self._blocks: dict[int, Block] = {}  # by address of the storage's C++ object
        self._lent: dict[tuple[object, int], list[Block]] = {}  # freed while other streams may use them
        self._buried: deque[Block] = deque()
        self._buried_bytes = 0
        self._tensors: dict[int, weakref.ref[Any]] = {}
        self.hazards: list[HazardError] = []  # found where nothing can be raised: in a destructor
        self.live = self.peak = 0

    def find(self, inner: Tensor) -> Block | None:
        return self._blocks.get(inner.untyped_storage()._cdata)

    def add(self, inner: Tensor, stream: Stream, pool: object, line: str, owner: Owner = "torch") -> Block:
        """A new block. Raises HazardError if the memory that it may be given is still used by another stream."""
        self.raise_found()
        for old in self._lent.pop((pool, stream.number), []) if owner == "torch" else ():
            for use in old.uses:
                known = use.is_before(stream.clock) or use.is_before(self._host)  # what the host has seen done is done
                if use.stream not in old.recorded and not known:
                    raise HazardError(
                        f"The memory of {old.line}, freed at {old.freed}, is given to {line}, and {use} may still use "
                        "it: call record_stream, or wait for that stream first."
                    )
        storage = inner.untyped_storage()
        block = self._blocks[storage._cdata] = Block(storage, stream, pool, line, owner)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        return block

    def share(self, tensor: Any, block: Block) -> None:
        """One more tensor of a block, until it is deleted."""
        block.tensors += 1
        key = id(tensor)

        def drop(_: object, block: Block = block, key: int = key) -> None:
            self._tensors.pop(key, None)
            self._drop(block)

        self._tensors[key] = weakref.ref(tensor, drop)

    def raise_found(self) -> None:
        """Raises what was found in a destructor."""
        if self.hazards:
            raise self.hazards.pop(0)

    def _drop(self, block: Block) -> None:
        block.tensors -= 1
        if block.tensors:
            return
        block.freed = find_line()
        self.live -= block.storage.nbytes()
        if block.owner == "DALI":
            self._take_back(block)
        elif block.pool is None:
            others = [use for use in block.uses if use.stream not in ({block.stream.number} | block.recorded)]
            if others:
                self._lent.setdefault((None, block.stream.number), []).append(block)
        if block.pool is None:  # a private pool keeps its addresses, and replays write them
            poison(block.storage)
        self._bury(block)

    def _take_back(self, block: Block) -> None:
        """DALI writes the memory at once, whatever torch's streams still do: the host must know that they are done."""
        for use in block.uses:
            if not use.is_before(self._host):
                self.hazards.append(
                    HazardError(f"DALI's memory of {block.line} was released at {block.freed}; {use} may still use it.")
                )

    def _bury(self, block: Block) -> None:
        if block.pool is not None:
            return
        self._buried.append(block)
        self._buried_bytes += block.storage.nbytes()
        while self._buried_bytes > BURIED:
            old = self._buried.popleft()
            self._buried_bytes -= old.storage.nbytes()
            self._blocks.pop(old.storage._cdata, None)
