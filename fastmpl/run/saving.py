"""Saves the state of a run at its steps, and says what came of each save once that is known."""

from pathlib import Path

from fastmpl.distributed.ranks import Ranks
from fastmpl.errors import FolderLostError, StorageError
from fastmpl.run.checkpoint import Checkpoint
from fastmpl.run.folder import write_status
from fastmpl.run.monitor import Monitor
from fastmpl.run.saver import Saver


class Saving:
    """The saves of one run; every rank calls it alike. `newest` is the step of the newest complete checkpoint."""

    def __init__(self, saver: Saver, monitor: Monitor, folder: Path, ranks: Ranks) -> None:
        self._saver, self._monitor, self._folder, self._ranks = saver, monitor, folder, ranks
        self.newest = -1  # none yet

    def save(self, made: Checkpoint, *, last: bool) -> None:
        """Saves a checkpoint, beside training unless it is the last one. The one before is finished first."""
        self._monitor.replaced.write(self._monitor.note)
        self.tell(wait=True)
        best = self._monitor.selection.best
        self._saver.begin(made, None if best is None else best["step"])
        self.tell(wait=last, last=last)

    def tell(self, *, wait: bool = False, last: bool = False) -> None:
        """Says what came of a save, once it is known. If the disk is full, training goes on, except after the last one."""
        saved = self._saver.take(wait=wait)
        if saved is None:
            return
        if saved.error is not None:
            if last or isinstance(saved.error, FolderLostError):
                raise saved.error
            self._monitor.note(f"{saved.error} Training goes on without this checkpoint.")
            return
        self.newest = saved.step
        self._monitor.show_saved(saved.step)
        if self._ranks.rank == 0:
            try:
                write_status(self._folder, "running", saved.step)
            except StorageError as error:
                self._monitor.note(f"{error} Training goes on.")

    def close(self) -> None:
        """Lets a save that has begun end."""
        self._saver.close()
