"""The keys and values that the ranks share, with a time limit on every call.

Rank 0 serves the store. Where that process stands still (SIGSTOP, a frozen machine), a call of torch's client never
returns. Each call is therefore made by a thread of its own kind, and given up after a while.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Answer = TypeVar("Answer")


class SharedStore(Protocol):
    """The keys and values that the ranks of a run share (torch.distributed.TCPStore)."""

    def add(self, key: str, amount: int) -> int: ...
    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...
    def set(self, key: str, value: str) -> None: ...


class StoreLostError(RuntimeError):
    """Rank 0, which serves the store, is gone or does not answer."""


class BoundedStore:
    """A SharedStore whose calls raise StoreLostError instead of waiting longer than `seconds`.

    Once a call was given up, all later ones raise at once: the thread that makes them still waits.
    """

    def __init__(self, store: SharedStore, seconds: float) -> None:
        self._store, self._seconds = store, seconds
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_lost = False
        threading.Thread(target=self._serve, name="store", daemon=True).start()

    def add(self, key: str, amount: int) -> int:
        return self._call(lambda: self._store.add(key, amount))

    def check(self, keys: list[str]) -> bool:
        return self._call(lambda: self._store.check(keys))

    def get(self, key: str) -> bytes:
        return self._call(lambda: self._store.get(key))

    def set(self, key: str, value: str) -> None:
        self._call(lambda: self._store.set(key, value))

    def close(self) -> None:
        """Ends the thread, unless it waits."""
        self._is_lost = True
        self._asked.put(lambda: None)

    def _serve(self) -> None:
        while True:
            self._asked.get()()
            if self._is_lost:
                return

    def _call(self, ask: Callable[[], Answer]) -> Answer:
        if self._is_lost:
            raise StoreLostError("the store of rank 0 does not answer")
        answered, found = threading.Event(), dict[str, Any]()

        def answer() -> None:
            try:
                found["value"] = ask()
            except RuntimeError as error:  # torch's DistNetworkError is one
                found["error"] = error
            answered.set()

        self._asked.put(answer)
        if not answered.wait(self._seconds):
            self._is_lost = True
            raise StoreLostError(f"the store of rank 0 did not answer for {self._seconds:.0f} s")
        if "error" in found:
            raise StoreLostError(str(found["error"])) from found["error"]
        answer_: Answer = found["value"]
        return answer_
