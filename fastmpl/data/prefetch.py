"""Makes batches in a thread of their own, so that a training step and the next batch are made at the same time.

What the thread and the step do on a GPU is ordered by `fastmpl.data.device_stream`.
"""

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from fastmpl.data.device_stream import Loans, MakingStream

Item = TypeVar("Item")


def _fill(
    make: Callable[[], Item], made: "queue.Queue[Item | BaseException]", stop: threading.Event, device: torch.device
) -> None:
    """Puts items into `made` until `stop` is set or `make` fails."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    stream = MakingStream(device)
    while not stop.is_set():
        try:
            item: Item | BaseException = stream.make(make)
        except BaseException as error:  # raised again where the item is asked for
            item = error
        while not stop.is_set():
            try:
                made.put(item, timeout=0.1)
                break
            except queue.Full:
                continue
        if isinstance(item, BaseException):
            return


def _end(stop: threading.Event, thread: threading.Thread | None, loans: Loans[Item]) -> None:
    stop.set()
    if thread is not None:
        thread.join(timeout=60)
    loans.end()


class Prefetcher(Generic[Item]):
    """Gives the items of `make` in order. A thread makes up to `depth` of them ahead; 0: each is made when asked for.

    An error of `make` is raised in the place of its item, and again at every later call. `close`, or the end of the
    program, ends the thread.
    """

    def __init__(self, make: Callable[[], Item], depth: int, device: torch.device) -> None:
        self._make, self._loans = make, Loans[Item](device)
        self._made: queue.Queue[Item | BaseException] | None = None
        stop, thread = threading.Event(), None
        if depth:
            self._made = queue.Queue(depth)
            arguments = (make, self._made, stop, device)
            thread = threading.Thread(target=_fill, args=arguments, name="batches", daemon=True)
            thread.start()
        self._end = weakref.finalize(self, _end, stop, thread, self._loans)

    def close(self) -> None:
        """Ends the thread after the item that it is making, and waits until a GPU has read the items that were given."""
        self._end()

    def next(self) -> Item:
        """The next item. On a GPU its memory belongs to the caller until the next call."""
        item = self._make() if self._made is None else self._made.get()
        if isinstance(item, BaseException):
            assert self._made is not None
            self._made.put(item)  # for whoever asks again
            raise item
        return self._loans.lend(item)
