"""CUDA streams and events that record what is asked of them; a test decides when the GPU has passed an event."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

import pytest
import torch


class RecordedStream:
    """A stream with a name."""

    def __init__(self, name: str) -> None:
        self.name = name


class RecordedEvent:
    """An event that the GPU passes when a test sets `passed`, or when the host waits for it."""

    def __init__(self, cuda: "RecordedCuda") -> None:
        self._cuda = cuda
        self.passed = False
        self.stream = ""

    def record(self, stream: RecordedStream) -> None:
        self.stream = stream.name
        self._cuda.log.append(f"event on {stream.name}")

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self._cuda.log.append(f"host waits for {self.stream}")
        self.passed = True


class RecordedCuda:
    """Stands in for the parts of torch.cuda that `fastmpl.data.device_stream` uses. `log` is what happened, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.events: list[RecordedEvent] = []
        self._current: dict[int, RecordedStream] = {}  # by thread
        self._created = 0
        for name in ("Stream", "Event", "stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    def Stream(self, device: object) -> RecordedStream:
        self._created += 1
        return RecordedStream(f"created {self._created}")

    def Event(self, blocking: bool = False) -> RecordedEvent:
        self.events.append(RecordedEvent(self))
        return self.events[-1]

    def current_stream(self, device: object = None) -> RecordedStream:
        return self._current.get(get_ident(), RecordedStream("default"))

    @contextmanager
    def stream(self, stream: RecordedStream) -> Iterator[None]:
        before = self.current_stream()
        self._current[get_ident()] = stream
        try:
            yield
        finally:
            self._current[get_ident()] = before
