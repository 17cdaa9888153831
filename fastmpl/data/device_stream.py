"""Orders the thread that makes batches, the step that reads them, and the memory between them on a GPU.

A GPU executes the work of one CUDA stream in order. Work of two streams is in order only where one waits for the other.
Memory that torch did not allocate goes back to its owner when its last tensor is dropped, though a stream may not have
read it yet: DALI then writes the next pictures there. `Tensor.record_stream` does not help, because it holds only the
memory that torch allocated. So every item is held here, in four moves:

    making stream                              reading stream
    ---------------------------------------    ------------------------------------------------------------------
    1. `MakingStream.make` makes item n
    2. the making thread waits for the GPU --> 3. `Loans.lend(n)`: the reader enqueues its work on item n
                                                  ...
       the memory of n may be written again <- 4. `lend(n + 1)` records an event; n is dropped once the GPU passed it

The reading stream is the one that is current when `lend` is called. A reader that uses another stream as well must let
the reading stream wait for that work before it asks for the next item: a captured step copies item n into its inputs on
the stream that replays, and its loading stream, on which it asks, waits for those copies and not for the replay.

On a CPU all of this does nothing.
"""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Item = TypeVar("Item")


def upload(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """`array` on `device`. On a GPU the copy is enqueued on the current stream, and the host does not wait for it.

    Without pinned memory the host would wait for everything that was enqueued before.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class MakingStream:
    """A CUDA stream on which one thread makes items, beside the training steps of another."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def make(self, make: Callable[[], Item]) -> Item:
        """Calls `make` on this stream, and returns its item once the GPU has finished it: any stream may read it then.

        Must not be called by the thread that trains, which would wait as well.
        """
        if self._stream is None:
            return make()
        with torch.cuda.stream(self._stream):
            item = make()
            made = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # the thread sleeps while it waits
            made.record(self._stream)
        made.synchronize()
        return item


def _drain(kept: deque[tuple[object, torch.cuda.Event]]) -> None:
    while kept:
        kept[0][1].synchronize()
        kept.popleft()


class KeepAlive:
    """Keeps objects until a GPU has finished reading their memory; whoever drops the last KeepAlive waits for that."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: deque[tuple[object, torch.cuda.Event]] = deque()
        weakref.finalize(self, _drain, self._kept)

    def keep(self, item: object, stream: torch.cuda.Stream | None = None) -> None:
        """Keeps `item` until all that is enqueued by now on `stream` (None: the current one) is done."""
        if self._device.type != "cuda":
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream or torch.cuda.current_stream(self._device))
        self._kept.append((item, event))
        while self._kept and self._kept[0][1].query():  # type: ignore[no-untyped-call]
            self._kept.popleft()

    def drain(self) -> None:
        """Waits for the GPU to finish with every kept object, and drops them."""
        _drain(self._kept)


class Loans(Generic[Item]):
    """The item that a reader has now, and earlier ones that its GPU has not finished reading."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._now: tuple[Item, torch.cuda.Stream] | None = None
        self._read = KeepAlive(device)

    def lend(self, item: Item) -> Item:
        """Gives `item` to the caller until the next call, and takes back the one before."""
        self._take_back()
        if self._device.type == "cuda":
            self._now = item, torch.cuda.current_stream(self._device)
        return item

    def end(self) -> None:
        """Takes back the last item, and waits until the GPU has read all items."""
        self._take_back()
        self._read.drain()

    def _take_back(self) -> None:
        if self._now is not None:
            self._read.keep(*self._now)
        self._now = None
