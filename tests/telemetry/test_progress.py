"""What a person sees while a run goes on, on a terminal and without one."""

import io
import math
import re

import pytest
from rich.console import Console

from fastmpl.telemetry.metrics_file import Evaluation
from fastmpl.telemetry.progress import Progress, duration

VALUES = {
    "images_per_second": 1412.0, "student_loss": 0.5312, "supervised_loss": 0.2131, "pseudo_loss": 0.0,
    "feedback": 0.00213, "feedback_size": 0.1, "coverage": 0.631, "confidence": 0.9, "skipped": 2.0,
}  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def terminal(width: int = 80, **options: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, **options)  # type: ignore[arg-type]


def pipe(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=width)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def visible(console: Console) -> list[str]:
    """The lines without the codes that move and colour."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text(console)).replace("\r", "\n").splitlines()


def evaluation(network: str, split: str, accuracy: float) -> Evaluation:
    return Evaluation(100, "train", network, split, accuracy, 1.0, 100)  # type: ignore[arg-type]


def show(console: Console, name: str = "digits") -> None:
    clock = Clock()
    with Progress(name, 3000, 0, console, clock) as progress:
        progress.show_saved()
        clock.now += 20
        progress.update(200, VALUES)
        progress.show_evaluation(evaluation("student", "validation", 0.912))
        progress.show_evaluation(evaluation("teacher", "validation", 0.9))
        progress.show_evaluation(evaluation("student", "test", 0.876))


SHOWN = (
    "digits", "200/3,000", "1,412 images/s", "4:40", "student 0.531", "supervised 0.213", "+2.13e-03", "63.1%",
    "student 91.2%", "teacher 90.0%", "student 87.6%", "2 updates", "20 s ago",
)  # fmt: skip


@pytest.mark.parametrize("console", [terminal(100), pipe()], ids=["terminal", "plain"])
def test_everything_that_is_known_is_shown(console: Console) -> None:
    show(console)
    shown = "\n".join(visible(console))
    assert [fact for fact in SHOWN if fact not in shown] == []


def test_a_line_without_a_step_that_credits_shows_no_feedback() -> None:
    console = pipe()
    with Progress("digits", 10, 0, console) as progress:
        progress.update(2, {**VALUES, "feedback": math.nan, "feedback_size": math.nan})
    assert "feedback" not in text(console)
    assert "student 0.531" in text(console)


def test_what_a_method_does_not_have_is_not_shown() -> None:
    console = pipe()
    with Progress("digits", 10, 0, console) as progress:
        progress.update(1, dict.fromkeys(VALUES, 0.0) | {"student_loss": 1.0})
    assert "feedback" not in text(console)
    assert "confident" not in text(console)
    assert "pseudo" not in text(console)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_line_of_the_block_is_wider_than_the_terminal(width: int) -> None:
    console = terminal(width)
    show(console, name="a" * 64)
    assert max(map(len, visible(console))) <= width


def test_forty_columns_still_show_every_number() -> None:
    console = terminal(40)
    show(console)
    shown = "\n".join(visible(console))
    assert "student 0.531" in shown
    assert "91.2%" in shown


def test_without_a_terminal_there_are_no_control_codes() -> None:
    console = pipe()
    show(console)
    assert "\x1b" not in text(console)
    assert "\r" not in text(console)


def test_no_color_is_respected_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = terminal()
    show(console)
    colours = re.findall(r"\x1b\[[0-9;]*(?:3[0-7]|38|4[0-7]|48|9[0-7])[0-9;]*m", text(console))
    assert colours == []


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = terminal()
    show(console)
    assert "\x1b" not in text(console)


def test_plain_lines_come_every_ten_seconds_and_one_at_the_end() -> None:
    console, clock = pipe(), Clock()
    with Progress("digits", 1000, 0, console, clock) as progress:
        for step in range(1, 61):
            clock.now += 0.5
            progress.update(step, VALUES)
    lines = text(console).splitlines()
    assert [line.split(" | ")[0] for line in lines] == [f"digits {step}/1,000" for step in (20, 40, 60, 60)]


def test_a_long_plain_line_is_not_broken() -> None:
    console = pipe(40)
    show(console)
    assert len(text(console).splitlines()) == 2


def test_time_left_follows_the_last_half_minute_and_not_the_whole_run() -> None:
    console, clock = pipe(), Clock()
    with Progress("digits", 1000, 0, console, clock) as progress:
        for step, seconds in [(s, 1.0) for s in range(1, 101)] + [(s, 2.0) for s in range(101, 201)]:
            clock.now += seconds
            progress.update(step, VALUES)
    assert "time left 26:40" in text(console).splitlines()[-1]  # 800 steps of 2 s


def test_skipped_updates_are_counted_over_the_whole_run() -> None:
    console = pipe()
    with Progress("digits", 10, 0, console) as progress:
        progress.update(1, VALUES)
        progress.update(2, {})
        progress.update(3, VALUES)
    assert "skipped 4 updates" in text(console)


def test_a_resumed_run_measures_its_own_speed() -> None:
    console, clock = pipe(), Clock()
    with Progress("digits", 1000, 900, console, clock) as progress:
        clock.now += 10
        progress.update(910, VALUES)
    assert "time left 1:30" in text(console)


@pytest.mark.parametrize("console", [terminal(), pipe()], ids=["terminal", "plain"])
def test_a_note_is_shown_as_it_is(console: Console) -> None:
    with Progress("digits", 10, 0, console) as progress:
        progress.show_note("[bold]TensorBoard[/bold] is switched off.")
    assert any("[bold]TensorBoard[/bold] is switched off." in line for line in visible(console))


def test_an_error_leaves_the_terminal_usable() -> None:
    console = terminal()

    def fail() -> None:
        with Progress("digits", 10, 0, console):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        fail()
    assert text(console).rfind("\x1b[?25h") > text(console).rfind("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0 s"), (59.6, "1:00"), (247, "4:07"), (11047, "3:04:07")])
def test_durations_are_read_at_a_glance(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_values_are_asked_for_when_those_that_are_shown_are_old() -> None:
    """Where steps are slow or lines long, a log does not repeat the numbers of a line long ago."""
    console, clock = pipe(), Clock()
    with Progress("digits", 1000, 0, console, clock) as progress:
        assert not progress.wants_values
        clock.now += 5
        assert progress.wants_values
        progress.preview(VALUES | {"student_loss": 2.0})
        assert not progress.wants_values
        clock.now += 5
        progress.update(1, {})
        progress.update(2, VALUES)
        assert not progress.wants_values
    first, last = text(console).splitlines()
    assert first.startswith("digits 1/1,000") and "student 2.000" in first
    assert "student 0.531" in last and "skipped 2 updates" in last  # those of the preview are not counted twice


def test_an_accuracy_of_an_earlier_step_says_which() -> None:
    console = pipe()
    with Progress("digits", 1000, 0, console) as progress:
        progress.update(100, VALUES)
        progress.show_evaluation(evaluation("student", "test", 0.5))
    assert "test student 50.0% |" in text(console)
    with Progress("digits", 1000, 0, console) as progress:
        progress.show_evaluation(evaluation("student", "test", 0.5))
        progress.update(150, VALUES)
    assert "test student 50.0% (at 100) |" in text(console)


def test_a_finished_run_has_no_time_left() -> None:
    console, clock = pipe(), Clock()
    with Progress("digits", 10, 0, console, clock) as progress:
        clock.now += 10
        progress.update(10, VALUES)
    assert "time left" not in text(console)


def test_a_terminal_that_became_narrow_is_cleared_before_the_block_is_drawn_again() -> None:
    console = terminal(120)
    with Progress("digits", 3000, 0, console) as progress:
        assert progress._live is not None
        progress.update(200, VALUES)
        progress._live.refresh()
        assert max(map(len, visible(console))) <= 72
        console.width = 80
        progress._live.refresh()
        assert "\x1b[2J" not in text(console)  # its lines were not broken
        console.width = 40
        before = len(text(console))
        progress._live.refresh()
        drawn = text(console)[before:]
        assert drawn.startswith("\x1b[2J\x1b[H")
        progress._live.refresh()
        assert text(console).count("\x1b[2J") == 1
    assert max(map(len, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn).replace("\r", "\n").splitlines())) <= 40
