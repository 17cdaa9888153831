"""Functions of a program's own that a run calls while it trains: after a step, an evaluation, a checkpoint.

They get numbers and names, and no tensor of the run. What they set in torch for themselves (random state, gradient mode,
default type, threads) is set back afterwards, so that a run with callbacks computes the same numbers as one without. Only
the first rank calls them, and the others wait for it at their next message.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastmpl.errors import ConfigError, FastMPLError
from fastmpl.telemetry.metrics_file import Evaluation


class StepDone(NamedTuple):
    """The run has taken `step` of `total` steps."""

    step: int
    total: int


class CheckpointSaved(NamedTuple):
    """The checkpoint of `step` is complete, in `folder`."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Callback:
    """What to call, and when. What a function returns is ignored; what it raises stops the run."""

    on_step: Callable[[StepDone], object] | None = None
    """After every step of training and fine-tuning. The GPU may still be computing it."""
    on_evaluation: Callable[[Evaluation], object] | None = None
    """After each network is scored on each set of images: step, phase, network, split, accuracy, loss, images."""
    on_checkpoint: Callable[[CheckpointSaved], object] | None = None
    """After each checkpoint."""


class CallbackError(FastMPLError):
    """A function that was given as a callback raised an exception, which is this one's cause."""

    exit_code = 2
    topic = "Callback"


class Callbacks:
    """Calls several callbacks in their order."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        """Raises ConfigError for what is no sequence of Callbacks."""
        if not isinstance(callbacks, Sequence) or not all(isinstance(one, Callback) for one in callbacks):
            raise ConfigError("callbacks is a list of fastmpl.Callback, such as [fastmpl.Callback(on_step=print)].")
        self._step = [one.on_step for one in callbacks if one.on_step]
        self._evaluation = [one.on_evaluation for one in callbacks if one.on_evaluation]
        self._checkpoint = [one.on_checkpoint for one in callbacks if one.on_checkpoint]

    def call_step(self, step: int, total: int) -> None:
        """Calls each `on_step`."""
        _call(self._step, StepDone(step, total))

    def call_evaluation(self, evaluation: Evaluation) -> None:
        """Calls each `on_evaluation`."""
        _call(self._evaluation, evaluation)

    def call_checkpoint(self, step: int, folder: Path) -> None:
        """Calls each `on_checkpoint`."""
        _call(self._checkpoint, CheckpointSaved(step, folder))


def _call(functions: Sequence[Callable[[Any], object]], event: StepDone | Evaluation | CheckpointSaved) -> None:
    for function in functions:
        with _set_torch_back():
            try:
                function(event)
            except FastMPLError:
                raise
            except Exception as error:
                name = getattr(function, "__qualname__", type(function).__qualname__)
                words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                raise CallbackError(f"{name} stopped the run after step {event.step}: {words}") from error


@contextmanager
def _set_torch_back() -> Iterator[None]:
    """Undoes what is set in torch for the whole process and would change a number of the run."""
    threads, kind = torch.get_num_threads(), torch.get_default_dtype()
    with torch.random.fork_rng(), torch.set_grad_enabled(torch.is_grad_enabled()):
        try:
            yield
        finally:
            torch.set_default_dtype(kind)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
