"""Writes stored distributions shard by shard: by several processes, and in several attempts.

plan.json fixes what is written. A shard gets its name when it is whole, and a note beside it (shard-*.json) with its
checksum and with how far packing changed it. The process that finds the last note makes header.json of all notes. So a
process that dies loses only the shard it was writing, and no process waits for another.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastmpl.data.errors import DataError
from fastmpl.data.stores.distributions import Probabilities, RowFormat, total_variation
from fastmpl.data.stores.store import HEADER, PackingChange, StoreHeader, StoreShard, checksum
from fastmpl.untrusted import read_json_object

PLAN = "plan.json"
SHARD_ROWS = 1 << 17


class StorePlan(NamedTuple):
    """What a store will hold. `images`: the digest of the data set. `teacher`: whose distributions they are, in words."""

    rows: int
    classes: int
    kept: int
    images: str
    teacher: str
    shard_rows: int = SHARD_ROWS
    class_names: tuple[str, ...] = ()  # of the data, in the order of the rows

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def range(self, shard: int) -> tuple[int, int]:
        """The first row of a shard, and the row after its last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows)


class ShardNote(NamedTuple):
    """What is written beside a complete shard: its size and checksum, and how far packing changed its rows."""

    bytes: int
    blake2b: str
    total: float
    largest: float
    changed: int


class StoreWriter:
    """Writes the shards of rank `rank` of `world`."""

    def __init__(self, folder: Path, plan: StorePlan, *, rank: int = 0, world: int = 1) -> None:
        """Starts a store, or continues one. Raises DataError where the folder holds a store of another plan.

        A plan of which no shard was written is replaced.
        """
        self.folder, self.plan, self.rank, self.world = folder, plan, rank, world
        self._made_folder = not folder.exists()
        self._written: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.glob("shard-*.json")):
            _write(folder / PLAN, json.dumps(plan._asdict(), indent=1) + "\n")
        wanted = json.loads(json.dumps(plan._asdict()))  # tuples become lists
        held = {"class_names": wanted["class_names"]} | _read_plan(folder)  # version 0.1.0 wrote no names
        differing = [key for key in wanted if held.get(key) != wanted[key]]
        if differing:
            said = ", ".join(f"{key} {held.get(key)} there, {wanted[key]} here" for key in differing)
            raise DataError(f"{folder} holds other distributions ({said}): name another folder, or delete it.")

    def missing(self) -> Iterator[int]:
        """This rank's shards that are not complete yet."""
        for shard in range(self.rank, self.plan.shards, self.world):
            note, path = self._note(shard), self._path(shard)
            written = _read_note(note)
            if written is not None and path.is_file() and path.stat().st_size == written.bytes:
                continue
            yield shard

    def write(self, shard: int, parts: Iterable[Probabilities]) -> None:
        """Writes a shard. Its rows [n, K] come in parts."""
        first, last = self.plan.range(shard)
        form, path = RowFormat(self.plan.classes, self.plan.kept), self._path(shard)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        total, largest, changed, written = 0.0, 0.0, 0, 0
        with draft.open("wb") as file:
            for rows in parts:
                packed = form.pack(rows)
                file.write(packed.tobytes())
                again = form.unpack(packed)
                apart = total_variation(again, rows)
                total, largest = total + float(apart.sum()), max(largest, float(apart.max()))
                changed += int((again.argmax(1) != rows.argmax(1)).sum())
                written += len(rows)
            file.flush()
            os.fsync(file.fileno())
        assert written == last - first, "these are not the shard's rows"
        note = {"bytes": draft.stat().st_size, "blake2b": checksum(draft)}
        (self.folder / HEADER).unlink(missing_ok=True)  # it may be there from before a shard was lost
        draft.replace(path)
        _write(self._note(shard), json.dumps(note | {"total": total, "largest": largest, "changed": changed}))
        self._written.append(shard)

    def finish(self) -> StoreHeader | None:
        """Writes the header if the shards of every rank are complete, and returns it; else None: another rank will."""
        notes = [note for s in range(self.plan.shards) if (note := _read_note(self._note(s))) is not None]
        if len(notes) < self.plan.shards:
            return None
        error = PackingChange(
            mean_total_variation=float(np.sum([note.total for note in notes])) / self.plan.rows,
            largest_total_variation=max(note.largest for note in notes),
            changed_top=sum(note.changed for note in notes),
        )
        shards = tuple(StoreShard(self._path(s).name, note.bytes, note.blake2b) for s, note in enumerate(notes))
        header = StoreHeader(**self.plan._asdict(), error=error, shards=shards)
        _write(self.folder / HEADER, header.to_json())
        return header

    def discard(self) -> None:
        """Removes what this writer wrote, so that it does not stand in the way of the next attempt."""
        for shard in self._written:
            self._note(shard).unlink(missing_ok=True)
            self._path(shard).unlink(missing_ok=True)
        for draft in self.folder.glob(f"*.{os.getpid()}.tmp"):
            draft.unlink()
        if not any(self.folder.glob("shard-*")):
            (self.folder / PLAN).unlink(missing_ok=True)
        if self._made_folder and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.bin"

    def _note(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"


def _read_note(path: Path) -> ShardNote | None:
    """The note of a shard; None where there is none, or one that no writer wrote: the shard is then written again."""
    try:
        found = ShardNote(**read_json_object(path))
    except (OSError, ValueError, TypeError):
        return None
    whole = type(found.bytes) is int and type(found.changed) is int and isinstance(found.blake2b, str)
    measured = all(isinstance(part, int | float) and math.isfinite(part) for part in (found.total, found.largest))
    return found if whole and measured else None


def _read_plan(folder: Path) -> dict[str, Any]:
    try:
        plan = read_json_object(folder / PLAN)
    except (ValueError, OSError) as error:
        raise DataError(f"{folder / PLAN} cannot be read ({error}): delete the folder and start again.") from error
    return plan


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(text)
    draft.replace(path)
