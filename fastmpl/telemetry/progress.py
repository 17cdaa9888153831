"""What a person sees while a run goes on: one live block on a terminal, plain lines elsewhere.

Both show the same facts, made by `facts`. Rich draws the block, keeps to the width of the terminal and to NO_COLOR, and
is imported here alone. Leaves out the record (`metrics`) and which rank has the terminal (the trainer).
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from fastmpl.telemetry.metrics import Evaluation

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

PLAIN_EVERY: Final = 10.0  # seconds between two plain lines
SPAN: Final = 30  # seconds, at least a second apart, over which the speed is measured
WORTH_SAYING: Final = 0.02  # of the time spent waiting for data
NETWORKS: Final = ("student", "average", "teacher")


class State(NamedTuple):
    """What is known of the run; replaced whole, because the block is drawn by another thread."""

    name: str
    steps: int
    step: int
    values: Mapping[str, float] = {}  # of the last line of metrics
    accuracy: Mapping[tuple[str, str], float] = {}  # of (split, network), the last
    seconds_per_step: float | None = None
    skipped: float = 0.0  # updates, since the start
    saved: float | None = None  # when the last checkpoint was written


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
    """`91.2%`: without a space, at which a narrow terminal would break it."""
    return f"{100 * share:.1f}%"


def facts(state: State, now: float) -> list[Fact]:
    """What is known at the time `now`, in the order in which it is shown. What a method does not have is left out."""
    values = state.values
    shown = []
    if "images_per_second" in values:
        shown.append(Fact("speed", f"{values['images_per_second']:,.0f} images/s"))
    if values.get("waiting", 0.0) > WORTH_SAYING:
        shown.append(Fact("waits for data", percent(values["waiting"])))
    if state.seconds_per_step is not None:
        shown.append(Fact("time left", duration(state.seconds_per_step * (state.steps - state.step))))
    losses = {name: values.get(f"{name}_loss", 0.0) for name in ("student", "supervised", "pseudo")}
    if values:
        shown.append(Fact("loss", ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items() if loss != 0)))
    if values.get("feedback_size", 0.0) != 0:
        shown.append(Fact("feedback", f"{values['feedback']:+.2e}"))
    if values.get("confidence", 0.0) != 0:
        shown.append(Fact("confident", f"{percent(values['coverage'])} of labels"))
    for split in ("validation", "test"):
        of = {network: state.accuracy[split, network] for network in NETWORKS if (split, network) in state.accuracy}
        if of:
            shown.append(Fact(split, ", ".join(f"{network} {percent(share)}" for network, share in of.items())))
    if "skipped" in values:
        shown.append(Fact("skipped", f"{state.skipped:.0f} updates"))
    if state.saved is not None:
        shown.append(Fact("checkpoint", f"{duration(now - state.saved)} ago"))
    return [fact for fact in shown if fact.value]


def line(state: State, now: float) -> str:
    """The facts on one line: `digits 1,200/3,000 | speed 412 images/s | ...`."""
    where = f"{state.name} {state.step:,}/{state.steps:,}"
    return " | ".join([where, *(f"{label} {value}" for label, value in facts(state, now))])


def block(state: State, now: float) -> "RenderableType":
    """The facts below a bar, for a terminal of any width."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(expand=True)
    head.add_column(ratio=1, overflow="fold")
    head.add_column(justify="right", no_wrap=True)
    head.add_row(Text(state.name, style="bold"), f"{state.step:,}/{state.steps:,}")
    bar = Table.grid(expand=True)  # a bar alone does not end its line
    bar.add_row(ProgressBar(total=max(state.steps, 1), completed=state.step))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts(state, now):
        grid.add_row(label, Text(value))
    return Group(head, bar, grid)


class Progress:
    """Shows a run of `steps` steps that begins, or goes on, at step `start`. Use in a `with`; on one rank.

    Calls only keep what they are told; the block is drawn by another thread. console: a rich one, standard output if
    not given. clock: seconds.
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

        self._console = console or Console()
        self._clock = clock
        self._state = State(name, steps, start)
        self._seen = deque([(clock(), start)], maxlen=SPAN)
        self._live = self._block() if self._console.is_interactive else None  # the one place that decides
        self._printed = clock()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """The run is at `step`; values: a new line of metrics, with `images_per_second`, or empty."""
        now = self._clock()
        then, first = self._seen[0]
        pace = (now - then) / (step - first) if step > first else None
        if now - self._seen[-1][0] >= 1:
            self._seen.append((now, step))
        old = self._state
        skipped = old.skipped + values.get("skipped", 0.0)
        self._state = old._replace(step=step, values=values or old.values, seconds_per_step=pace, skipped=skipped)
        if self._live is None and now - self._printed >= PLAIN_EVERY:
            self._print(line(self._state, now))
            self._printed = now

    def evaluation(self, evaluation: Evaluation) -> None:
        """A network was evaluated."""
        key = (evaluation.split, evaluation.network)
        self._state = self._state._replace(accuracy={**self._state.accuracy, key: evaluation.accuracy})

    def saved(self) -> None:
        """A checkpoint was written now."""
        self._state = self._state._replace(saved=self._clock())

    def note(self, sentence: str) -> None:
        """Something the user is told, at once and lastingly."""
        self._print(sentence)

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

        return Live(
            console=self._console, get_renderable=lambda: block(self._state, self._clock()), refresh_per_second=4
        )

    def _print(self, sentence: str) -> None:
        """As it is: a name in brackets is no markup, and a long line is not broken."""
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)


class Silent(Progress):
    """Shows nothing: for runs of an experiment, of which many go on at once."""

    def __init__(self, name: str, steps: int, start: int = 0) -> None:
        from rich.console import Console

        super().__init__(name, steps, start, Console(quiet=True, force_interactive=False))
