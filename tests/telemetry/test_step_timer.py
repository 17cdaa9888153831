"""Seconds per step, and the share spent waiting for the batch, of log lines that are read late."""

import pytest

from fastmpl.telemetry.step_timer import StepTimer


class Seconds:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def later(self, seconds: float) -> str:
        self.now += seconds
        return "a batch"


def take_steps(timer: StepTimer, seconds: Seconds, steps: int, waiting: float, working: float) -> None:
    for _ in range(steps):
        assert timer.wait_for(lambda: seconds.later(waiting)) == "a batch"
        seconds.later(working)


def test_a_step_s_time_is_that_of_its_work_and_of_waiting_for_its_batch() -> None:
    seconds = Seconds()
    timer = StepTimer(10, seconds)
    take_steps(timer, seconds, 4, 0.1, 0.4)
    pace = timer.pace(14)
    assert pace.step == pytest.approx(0.5)
    assert pace.waiting_share == pytest.approx(0.2)


def test_what_is_told_in_two_lines_adds_up_and_nothing_is_told_twice() -> None:
    seconds = Seconds()
    timer = StepTimer(0, seconds)
    take_steps(timer, seconds, 6, 0.1, 0.1)
    pace = timer.pace(6)
    timer.start_after(2, pace)
    timer.start_after(4, pace)  # two lines, and two steps of the next one
    take_steps(timer, seconds, 2, 0.3, 0.1)
    assert timer.pace(8).step == pytest.approx((2 * 0.2 + 2 * 0.4) / 4)
    assert timer.pace(8).waiting == pytest.approx((2 * 0.1 + 2 * 0.3) / 4)
