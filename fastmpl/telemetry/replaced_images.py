"""The images that could not be read in a run: a line each in `replaced.jsonl`, and a note to the user.

Each rank knows the replaced images of its own batches. They are gathered whenever metrics are read and before every
checkpoint, so that a resumed run has the same file as an uninterrupted one.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from fastmpl.data.errors import printable
from fastmpl.data.view_stream import Replacement
from fastmpl.distributed.ranks import Ranks
from fastmpl.untrusted import read_bytes

FILE: Final = "replaced.jsonl"


class ReplacedImages(Protocol):
    """A record of replaced images."""

    def add(self, step: int, replaced: Sequence[Replacement]) -> None: ...
    def write(self, note: Callable[[str], None]) -> None: ...
    def truncate_after(self, step: int) -> None: ...


class ReplacedImagesFile:
    """The record of all ranks in the run's folder, written by rank 0."""

    def __init__(self, folder: Path, ranks: Ranks, names: Sequence[str]) -> None:
        """names: of the training images, by index."""
        self._path, self._ranks, self._names = folder / FILE, ranks, names
        self._mine: list[dict[str, Any]] = []

    def add(self, step: int, replaced: Sequence[Replacement]) -> None:
        """Notes the images that were replaced in this rank's batch of `step`."""
        for one in replaced:
            file, by = self._names[one.index], self._names[one.by]
            self._mine.append({"step": step, "file": file, "reason": one.reason, "by": by})

    def write(self, note: Callable[[str], None]) -> None:
        """Writes what all ranks have added since the last call; every rank calls it. `note` is called with a sentence."""
        found = [line for lines in self._ranks.all_gather_object(self._mine) for line in lines]
        self._mine = []
        if self._ranks.rank or not found:
            return
        found.sort(key=lambda line: (line["step"], line["file"]))  # whichever rank read it
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in found)
        except OSError as error:  # a full disk; the run goes on, and the note names the first image
            note(f"{self._path} cannot be written: {error.strerror}. Training goes on; its lines are missing.")
        first, others = found[0], len(found) - 1
        more = f", as {'were' if others > 1 else 'was'} {others:,} other{'s' * (others > 1)}" if others else ""
        note(
            f"{printable(first['file'])} could not be read at step {first['step']:,} ({printable(first['reason'])}) "
            f"and was replaced by {printable(first['by'])}{more}: {self._path} lists all of them."
        )

    def truncate_after(self, step: int) -> None:
        """Drops the lines of steps after `step`, from which the run continues."""
        if not self._path.exists():
            return
        lines = read_bytes(self._path).decode("utf-8", "replace").split("\n")
        kept = [line for line in lines if (found := _step_of(line)) is not None and found <= step]
        draft = self._path.with_name(f"{FILE}.tmp")
        draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        draft.replace(self._path)


def _step_of(line: str) -> int | None:
    """The step of a line; None of one that a run does not write, as a crash leaves it."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = found.get("step") if isinstance(found, dict) else None
    return step if isinstance(step, int) else None


class NoReplacedImages:
    """The record where all images were decoded before the run, so that none is ever replaced."""

    def add(self, step: int, replaced: Sequence[Replacement]) -> None: ...
    def write(self, note: Callable[[str], None]) -> None: ...
    def truncate_after(self, step: int) -> None: ...
