"""How much of a step is spent waiting for its batch, told with the lines that are read later."""

import pytest

from fastmpl.telemetry.step_timer import Clock


class Seconds:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def later(self, seconds: float) -> str:
        self.now += seconds
        return "a batch"


def stepped(clock: Clock, seconds: Seconds, steps: int, waiting: float, working: float) -> None:
    for _ in range(steps):
        assert clock.awaited(lambda: seconds.later(waiting)) == "a batch"
        seconds.later(working)


def test_a_step_s_time_is_that_of_its_work_and_of_waiting_for_its_batch() -> None:
    seconds = Seconds()
    clock = Clock(10, seconds)
    stepped(clock, seconds, 4, 0.1, 0.4)
    pace = clock.pace(14)
    assert pace.step == pytest.approx(0.5)
    assert pace.waits == pytest.approx(0.2)


def test_what_is_told_in_two_lines_adds_up_and_nothing_is_told_twice() -> None:
    seconds = Seconds()
    clock = Clock(0, seconds)
    stepped(clock, seconds, 6, 0.1, 0.1)
    pace = clock.pace(6)
    clock.passed(2, pace)
    clock.passed(4, pace)  # two lines, and two steps of the next one
    stepped(clock, seconds, 2, 0.3, 0.1)
    assert clock.pace(8).step == pytest.approx((2 * 0.2 + 2 * 0.4) / 4)
    assert clock.pace(8).waiting == pytest.approx((2 * 0.1 + 2 * 0.3) / 4)
