"""Seconds per step and the share spent waiting for data, for log lines that are read late."""

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class Pace(NamedTuple):
    """Mean seconds of a step."""

    step: float
    waiting: float  # of these, spent waiting for the batch

    @property
    def waiting_share(self) -> float:
        """The share of a step that is spent waiting, in [0, 1]."""
        return self.waiting / self.step


class StepTimer:
    """Measures the steps since the last log line. A line may be read several steps after its last step."""

    def __init__(self, step: int, now: Callable[[], float] = time.monotonic) -> None:
        """step: the last one that is not measured. now: a clock in seconds."""
        self.step, self._now = step, now
        self._since, self._waited = now(), 0.0

    def wait_for(self, produce: Callable[[], Item]) -> Item:
        """Calls `produce` and counts the host's time until it returns as time spent waiting."""
        asked = self._now()
        found = produce()
        self._waited += self._now() - asked
        return found

    def pace(self, step: int) -> Pace:
        """The mean over the steps after the last line, up to `step`, which ended now."""
        steps = max(step - self.step, 1)
        return Pace(max(self._now() - self._since, 1e-9) / steps, self._waited / steps)

    def start_after(self, step: int, pace: Pace) -> None:
        """Measures from the end of `step` on, the last step of a line; the line's steps took `pace` each."""
        steps = step - self.step
        self._since += pace.step * steps
        self._waited -= pace.waiting * steps
        self.step = step
