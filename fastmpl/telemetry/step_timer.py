"""How long steps take that are told of later than they were taken, and how much of it they wait for their images."""

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class Pace(NamedTuple):
    """Seconds of a step."""

    step: float
    waiting: float  # of these, until its batch was there

    @property
    def waits(self) -> float:
        """The share of a step that is spent waiting."""
        return self.waiting / self.step


class Clock:
    """Since when the steps of the next line have been running: lines are read later than their last step was taken."""

    def __init__(self, step: int, now: Callable[[], float] = time.monotonic) -> None:
        self.step, self._now = step, now
        self._since, self._waited = now(), 0.0

    def awaited(self, following: Callable[[], Item]) -> Item:
        """What `following` gives; the host's time until it does is time waited."""
        asked = self._now()
        found = following()
        self._waited += self._now() - asked
        return found

    def pace(self, step: int) -> Pace:
        """Of the steps from the last line's end to `step`, which was taken now."""
        steps = max(step - self.step, 1)
        return Pace(max(self._now() - self._since, 1e-9) / steps, self._waited / steps)

    def passed(self, step: int, pace: Pace) -> None:
        """A line ended with `step`."""
        steps = step - self.step
        self._since += pace.step * steps
        self._waited -= pace.waiting * steps
        self.step = step
