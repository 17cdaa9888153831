"""The progress display of a run: a live block on a terminal, plain lines elsewhere.

Both show the same facts, made by `facts`. Rich draws the block, respects the width of the terminal and NO_COLOR, and is
imported only here. Leaves out the metrics file (`metrics`) and which rank has the display (the trainer).
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final, NamedTuple, Self, cast

from fastmpl.telemetry.metrics_file import Evaluation
from fastmpl.telemetry.output import DisplayStream
from fastmpl.untrusted import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

PLAIN_EVERY: Final = 10.0  # seconds between two plain lines
VALUES_EVERY: Final = 5.0  # seconds after which values are old
WIDEST: Final = 72  # columns of the block: a terminal may become narrower down to them without breaking its lines
SPAN: Final = 30  # seconds, at least a second apart, over which the speed is measured
WORTH_SHOWING: Final = 0.02  # share of the time spent waiting for data
NETWORKS: Final = ("student", "average", "teacher")


class State(NamedTuple):
    """The state of the display. It is replaced as a whole, because another thread draws the block."""

    name: str
    steps: int
    step: int
    values: Mapping[str, float] = {}  # of the last line of metrics
    accuracy: Mapping[tuple[str, str], float] = {}  # by (split, network), the last one
    evaluated: int = 0  # the step of the last accuracy
    seconds_per_step: float | None = None
    skipped: float = 0.0  # updates, since the start
    saved: float | None = None  # time of the last checkpoint


class Fact(NamedTuple):
    """A label and its value, as shown."""

    label: str
    value: str


def duration(seconds: float) -> str:
    """`9 s`, `4:07`, `3:04:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def percent(share: float) -> str:
    """`91.2%`: without a space, where a narrow terminal would break the line."""
    return f"{100 * share:.1f}%"


def facts(state: State, now: float) -> list[Fact]:
    """The facts at the time `now`, in the order in which they are shown; without those that the method does not have."""
    values = state.values
    shown = []
    if "images_per_second" in values:
        shown.append(Fact("speed", f"{values['images_per_second']:,.0f} images/s"))
    if values.get("waiting", 0.0) > WORTH_SHOWING:
        shown.append(Fact("waits for data", percent(values["waiting"])))
    if state.seconds_per_step is not None and state.step < state.steps:
        shown.append(Fact("time left", duration(state.seconds_per_step * (state.steps - state.step))))
    losses = {name: values.get(f"{name}_loss", 0.0) for name in ("student", "supervised", "pseudo")}
    if values:
        shown.append(Fact("loss", ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items() if loss != 0)))
    if abs(values.get("feedback_size", 0.0)) > 0:  # NaN where no step of the line measured it
        shown.append(Fact("feedback", f"{values['feedback']:+.2e}"))
    if values.get("confidence", 0.0) != 0:
        shown.append(Fact("confident", f"{percent(values['coverage'])} of labels"))
    for split in ("validation", "test"):
        of = {network: state.accuracy[split, network] for network in NETWORKS if (split, network) in state.accuracy}
        if of:
            when = f" (at {state.evaluated:,})" if state.evaluated != state.step else ""
            accuracies = ", ".join(f"{network} {percent(share)}" for network, share in of.items())
            shown.append(Fact(split, accuracies + when))
    if state.skipped:
        shown.append(Fact("skipped", f"{state.skipped:.0f} updates that were not finite"))
    if state.saved is not None:
        shown.append(Fact("checkpoint", f"{duration(now - state.saved)} ago"))
    return [fact for fact in shown if fact.value]


def line(state: State, now: float) -> str:
    """The facts on one line: `digits 1,200/3,000 | speed 412 images/s | ...`."""
    where = f"{state.name} {state.step:,}/{state.steps:,}"
    return " | ".join([where, *(f"{label} {value}" for label, value in facts(state, now))])


def block(state: State, now: float) -> "RenderableType":
    """The facts under a progress bar, for a terminal of any width."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(expand=True)
    head.add_column(ratio=1, overflow="fold")
    head.add_column(justify="right", no_wrap=True)
    head.add_row(Text(state.name, style="bold"), f"{state.step:,}/{state.steps:,}")
    bar = Table.grid(expand=True)  # a bar by itself does not end its line
    bar.add_row(ProgressBar(total=max(state.steps, 1), completed=state.step))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts(state, now):
        grid.add_row(label, Text(value))
    return Group(head, bar, grid)


class Progress:
    """Shows the progress of a run of `steps` steps that starts at step `start`. Use it in a `with`, on one rank.

    Methods only store values; another thread draws the block. console: standard output if not given. clock: in seconds.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        start: int = 0,
        console: "Console | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.console import Console

        self._console = console or Console(file=cast("IO[str]", DisplayStream(sys.stdout)))
        self._clock = clock
        self._state = State(printable(name), steps, start)
        self._seen = deque([(clock(), start)], maxlen=SPAN)
        self._width = self._console.width  # at which the block was last drawn
        self._live = self._block() if self._console.is_interactive else None  # decides between block and lines
        self._printed = self._valued = clock()

    @property
    def wants_values(self) -> bool:
        """Whether the values that are shown are so old that `preview` should be called."""
        return self._clock() - self._valued >= VALUES_EVERY

    def preview(self, values: Mapping[str, float]) -> None:
        """Shows values of a line of metrics that is not finished; the next finished line replaces them."""
        self._state, self._valued = self._state._replace(values=values), self._clock()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Shows that the run is at `step`. values: a new line of metrics with `images_per_second`, or empty."""
        now = self._clock()
        then, first = self._seen[0]
        pace = (now - then) / (step - first) if step > first else None
        if now - self._seen[-1][0] >= 1:
            self._seen.append((now, step))
        old = self._state
        if values:
            self._valued = now
        skipped = old.skipped + values.get("skipped", 0.0)
        self._state = old._replace(step=step, values=values or old.values, seconds_per_step=pace, skipped=skipped)
        if self._live is None and now - self._printed >= PLAIN_EVERY:
            self._print(line(self._state, now))
            self._printed = now

    def show_evaluation(self, evaluation: Evaluation) -> None:
        """Shows the score of a network."""
        key = (evaluation.split, evaluation.network)
        accuracy = {**self._state.accuracy, key: evaluation.accuracy}
        self._state = self._state._replace(accuracy=accuracy, evaluated=evaluation.step)

    def show_saved(self) -> None:
        """Shows that a checkpoint was written now."""
        self._state = self._state._replace(saved=self._clock())

    def show_note(self, sentence: str) -> None:
        """Prints a sentence above the block at once; it stays there."""
        self._print(printable(sentence))

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._print(line(self._state, self._clock()))

    def _block(self) -> "Live":
        from rich.live import Live

        return Live(console=self._console, get_renderable=self._draw, refresh_per_second=4)

    def _draw(self) -> "RenderableType":
        from rich.constrain import Constrain
        from rich.control import Control

        if self._console.width < min(self._width, WIDEST):  # the terminal has broken the lines that are there
            self._console.control(Control.clear(), Control.home())
        self._width = self._console.width
        return Constrain(block(self._state, self._clock()), WIDEST)

    def _print(self, sentence: str) -> None:
        """Prints literally: brackets are not markup, and a long line is not broken."""
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)


class Silent(Progress):
    """Shows nothing, for experiments that train many runs at once."""

    def __init__(self, name: str, steps: int, start: int = 0) -> None:
        from rich.console import Console

        super().__init__(name, steps, start, Console(quiet=True, force_interactive=False))

    @property
    def wants_values(self) -> bool:
        return False
