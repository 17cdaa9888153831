"""How long steps take that are told of later than they were taken."""

import time


class Clock:
    """Since when the steps of the next line have been running: lines are read later than their last step was taken."""

    def __init__(self, step: int) -> None:
        self.step, self._since = step, time.monotonic()

    def pace(self, step: int) -> float:
        """Seconds a step from the last line's end to `step`, which was taken now."""
        return max(time.monotonic() - self._since, 1e-9) / max(step - self.step, 1)

    def passed(self, step: int, pace: float) -> None:
        """A line ended with `step`."""
        self._since += pace * (step - self.step)
        self.step = step
