"""Images that could not be read while a run was going on: `replaced.jsonl` in its folder, and a word to the user.

Each rank knows those of its own batches. They are brought together when metrics are read and before a checkpoint is
written, so that the file of a resumed run is that of an uninterrupted one.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from fastmpl.data.errors import shown
from fastmpl.data.view_stream import Replacement
from fastmpl.distributed.ranks import Ranks

FILE: Final = "replaced.jsonl"


class Lost(Protocol):
    """Who keeps what was replaced."""

    def add(self, step: int, replaced: Sequence[Replacement]) -> None: ...
    def gather(self, tell: Callable[[str], None]) -> None: ...
    def truncate_after(self, step: int) -> None: ...


class LostImages:
    """The replaced images of all ranks; `names` are those of the training images."""

    def __init__(self, folder: Path, ranks: Ranks, names: Sequence[str]) -> None:
        self._path, self._ranks, self._names = folder / FILE, ranks, names
        self._mine: list[dict[str, Any]] = []

    def add(self, step: int, replaced: Sequence[Replacement]) -> None:
        """This rank's batch of `step` lacked these."""
        for one in replaced:
            file, by = self._names[one.index], self._names[one.by]
            self._mine.append({"step": step, "file": file, "reason": one.reason, "by": by})

    def gather(self, tell: Callable[[str], None]) -> None:
        """Brings together what all ranks added since the last call; all of them call it."""
        found = [line for lines in self._ranks.all_gather_object(self._mine) for line in lines]
        self._mine = []
        if self._ranks.rank or not found:
            return
        found.sort(key=lambda line: (line["step"], line["file"]))  # whatever rank it was on
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in found)
        first, others = found[0], len(found) - 1
        more = f", and so did {others:,} others" if others else ""
        tell(
            f"{shown(first['file'])} could not be used at step {first['step']:,} ({shown(first['reason'])}), and gave its "
            f"place to {shown(first['by'])}{more}: {self._path} has them all."
        )

    def truncate_after(self, step: int) -> None:
        """Drops what happened beyond `step`, from which the run goes on."""
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
            self._path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


class NoneLost:
    """For images that were all decoded before the run."""

    def add(self, step: int, replaced: Sequence[Replacement]) -> None: ...
    def gather(self, tell: Callable[[str], None]) -> None: ...
    def truncate_after(self, step: int) -> None: ...
