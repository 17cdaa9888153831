"""What a run leaves when it diverges: the state before a step whose update is not finite, so that it can be repeated.

Which of the last hundred steps failed is known later than they were taken, and their states are gone. The run therefore
goes on, with a copy of the state before each step, until an update is skipped again: with an update skipped in more than
one of ten steps, soon. Everything else of a step follows from its number.
"""

from pathlib import Path
from typing import Any, Final, Protocol

from fastmpl.data.batch import Batch
from fastmpl.distributed.ranks import Ranks
from fastmpl.errors import DivergedError, StorageError
from fastmpl.run import checkpoint
from fastmpl.run.checkpoint import Checkpoint
from fastmpl.run.monitor import Monitor
from fastmpl.telemetry.skip_window import AT_MOST, STEPS

FOLDER: Final = "nan"  # in the run's folder
REMEDIES: Final = "Lower student.lr or teacher.lr, set clip = 1.0, or lower feedback.weight."


class Diverged(Protocol):
    """A run that takes steps, as the trainer has it."""

    folder: Path
    step: int
    ranks: Ranks
    monitor: Monitor

    def make_checkpoint(self) -> Checkpoint: ...
    def take_step(self, phase: Any) -> Batch: ...


def describe_divergence(skipped: int, run: Diverged, phase: Any) -> DivergedError:
    """The error of a run that skipped too many updates, after it has captured a step that fails. Every rank calls it."""
    sentence = (
        f"{skipped} updates of {STEPS} steps were not finite (more than {AT_MOST}), up to step {run.step}. {REMEDIES}"
    )
    try:
        captured = capture_failing_step(run, phase)
    except StorageError as error:
        run.monitor.note(f"{error} The step that fails is not kept.")
        captured = None
    if captured is None:
        return DivergedError(sentence)
    return DivergedError(f"{sentence} `fastmpl replay {captured}` repeats a step that fails.")


def capture_failing_step(run: Diverged, phase: Any) -> Path | None:
    """The checkpoint of the state before the next step whose update is skipped; None if none of the next `STEPS` is.

    The images of that step are in its facts. Raises StorageError if it cannot be saved.
    """
    for _ in range(min(STEPS, phase.last - run.step) or 1):
        before = run.make_checkpoint()
        kept = {name: value.detach().cpu().clone() for name, value in before.tensors.items()}
        batch = run.take_step(phase)
        if float(run.monitor.skips.recent[-1]):
            images = {"labelled": batch.labelled_index, "unlabelled": batch.unlabelled_index}
            shown = run.ranks.all_gather_object({name: index.tolist() for name, index in images.items()})
            facts = before.facts | {"failing_batch": {name: [i for one in shown for i in one[name]] for name in images}}
            return checkpoint.save(run.folder / FOLDER, before._replace(tensors=kept, facts=facts), run.ranks)
    return None
