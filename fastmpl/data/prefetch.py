"""Items made before they are asked for, by a thread of their own, so that a step and its next batch are made at once.

On a GPU an item's memory may be DALI's, who uses it again when the last tensor is gone; the device may still be reading
then. So an item is held until the device has done all that was asked of it while the item was in use.
"""

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")


def _fill(
    make: Callable[[], Item],
    made: "queue.Queue[Item | BaseException]",
    stop: threading.Event,
    device: torch.device,
) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    while not stop.is_set():
        try:
            item: Item | BaseException = make()
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


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join(timeout=60)


class Prefetcher(Generic[Item]):
    """Gives what `make` makes, in order; up to `depth` items wait, and 0 makes each when it is asked for.

    An error of `make` is raised in its place, and ends it. `close` (or the end of the program) ends the thread.
    """

    def __init__(self, make: Callable[[], Item], depth: int, device: torch.device) -> None:
        self._device, self._make = device, make
        self._in_use: deque[tuple[Item, torch.cuda.Event | None]] = deque()
        self._made: queue.Queue[Item | BaseException] | None = None
        self._end: Callable[[], object] | None = None
        if depth:
            self._made, stop = queue.Queue(depth), threading.Event()
            arguments = (make, self._made, stop, device)
            thread = threading.Thread(target=_fill, args=arguments, name="batches", daemon=True)
            thread.start()
            self._end = weakref.finalize(self, _end, stop, thread)

    def close(self) -> None:
        """Ends the thread, when it has made what it is making."""
        if self._end is not None:
            self._end()

    def next(self) -> Item:
        """The next item."""
        item = self._make() if self._made is None else self._made.get()
        if isinstance(item, BaseException):
            assert self._made is not None
            self._made.put(item)  # for whoever asks again
            raise item
        if self._device.type == "cuda":
            self._hold(item)
        return item

    def _hold(self, item: Item) -> None:
        if self._in_use:  # what was given last is used up by what has been asked of the device since
            last, _ = self._in_use.pop()
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._in_use.append((last, event))
        while self._in_use and (first := self._in_use[0][1]) is not None and first.query():  # type: ignore[no-untyped-call]
            self._in_use.popleft()
        self._in_use.append((item, None))
