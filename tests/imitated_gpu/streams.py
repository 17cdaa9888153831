"""Streams and events as a happens-before clock.

Each stream numbers its operations. A clock tells for every stream the last operation that is known to come before. An
operation joins the clock of its stream; an event is a copy of a clock; to wait for an event joins its clock. The host
has a clock too: it learns from what it waits for, and everything launched later comes after what it has learned.
"""

import threading
from typing import Any, NamedTuple

Clock = dict[int, int]  # number of a stream -> number of its last operation that comes before


class Stamp(NamedTuple):
    """One operation: the `tick`-th of a stream, launched by that line."""

    stream: int
    tick: int
    name: str  # of the stream
    line: str

    def is_before(self, clock: Clock) -> bool:
        return clock.get(self.stream, 0) >= self.tick

    def __str__(self) -> str:
        return f"{self.line} on the {self.name} stream"


def join(clock: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        if clock.get(stream, 0) < tick:
            clock[stream] = tick


class Stream:
    """Stands for torch.cuda.Stream."""

    def __init__(self, timeline: "Timeline", name: str) -> None:
        self.timeline, self.name = timeline, name
        self.number = timeline.count_stream()
        self.cuda_stream = self.number
        self.device = timeline.device
        self.clock: Clock = {}

    def launch(self, line: str) -> Stamp:
        """The next operation of this stream."""
        join(self.clock, self.timeline.host)
        tick = self.clock[self.number] = self.clock.get(self.number, 0) + 1
        return Stamp(self.number, tick, self.name, line)

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event(self.timeline)
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        self.timeline.check_wait(self, event)
        join(self.clock, event.clock)

    def synchronize(self) -> None:
        self.timeline.block_host(self.clock, f"the {self.name} stream")

    def query(self) -> bool:
        return False

    def is_capturing(self) -> bool:
        return self.timeline.capture_of(self) is not None

    def __repr__(self) -> str:
        return f"<imitated stream {self.name}>"


class Event:
    """Stands for torch.cuda.Event. `query` is False twice before it is True, as work takes time on a device."""

    LATE = 2

    def __init__(self, timeline: "Timeline", **options: Any) -> None:
        self.timeline = timeline
        self.clock: Clock = {}
        self.captured_by: object = None
        self._asked = 0

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self.timeline.current()
        self.clock, self._asked = dict(stream.clock), 0
        self.captured_by = self.timeline.capture_of(stream)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self.timeline.current()).wait_event(self)

    def query(self) -> bool:
        self._asked += 1
        if self._asked <= self.LATE and self.clock:
            return False
        join(self.timeline.host, self.clock)
        return True

    def synchronize(self) -> None:
        """Not an error where `torch.cuda.set_sync_debug_mode` forbids waits: torch does not see this one."""
        self.timeline.block_host(self.clock, "an event", is_watched=False)

    def elapsed_time(self, end: "Event") -> float:
        return 1.0


class Timeline:
    """The streams of the device, the clock of the host, and the current stream of each thread."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.host: Clock = {}
        self._count = 0
        self._local = threading.local()
        self.streams: list[Stream] = []
        self.default = Stream(self, "default")
        self.streams.append(self.default)

    def count_stream(self) -> int:
        self._count += 1
        return self._count

    def make(self, name: str = "") -> Stream:
        made = Stream(self, name)
        made.name = name or f"side {made.number}"
        self.streams.append(made)
        return made

    def current(self) -> Stream:
        stream: Stream = getattr(self._local, "stream", self.default)
        return stream

    def set_current(self, stream: Stream) -> None:
        self._local.stream = stream

    def block_host(self, clock: Clock, what: str, *, is_watched: bool = True) -> None:
        """The host waits until all of `clock` is done. is_watched: whether torch's debug mode sees it."""
        join(self.host, clock)

    def synchronize(self) -> None:
        for stream in self.streams:
            self.block_host(stream.clock, "the device")

    def check_wait(self, stream: Stream, event: Event) -> None:
        """Called before a stream waits for an event."""

    def capture_of(self, stream: Stream) -> object:
        """The capture that a stream takes part in, or None."""
        return None
