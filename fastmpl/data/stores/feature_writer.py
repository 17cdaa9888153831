"""Writes the stored features of a frozen network shard by shard, in several attempts.

plan.json fixes what is written. A shard gets its name when it is whole, and a note beside it with its checksum, so that a
process that dies loses only the shard it was writing.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from fastmpl.data.errors import DataError
from fastmpl.data.stores.features import HEADER, FeatureHeader, FeaturePlan, Rows, shard_name
from fastmpl.data.stores.store import StoreShard, checksum

PLAN: Final = "plan.json"


class FeatureWriter:
    """Writes the shards of a store that are missing, and its header once all are there."""

    def __init__(self, folder: Path, plan: FeaturePlan) -> None:
        """Starts a store, or continues one. Raises DataError where the folder holds a store of another plan."""
        self.folder, self.plan = folder, plan
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / PLAN).is_file():
            _write(folder / PLAN, json.dumps(plan._asdict(), indent=1) + "\n")
        held = (folder / PLAN).read_text()
        if held != json.dumps(plan._asdict(), indent=1) + "\n":
            raise DataError(
                f"{folder} holds other features than those asked for ({plan.network}; {plan.train} images, {plan.views} "
                "views): name another folder by --features, or delete it."
            )

    def missing(self) -> Iterator[tuple[str, int, int]]:
        """Table, first image and the image after the last one of the shards that are not complete yet."""
        for table, first, end in self.plan.shards():
            note, path = self._note(table, first), self._path(table, first)
            if note is None or not path.is_file() or path.stat().st_size != note.bytes:
                yield table, first, end

    def write(self, table: str, first: int, end: int, parts: Iterable[Rows]) -> None:
        """Writes a shard; its rows come in parts. Raises DataError where a feature is not finite."""
        path = self._path(table, first)
        draft, written = path.with_suffix(f".{os.getpid()}.tmp"), 0
        try:
            with draft.open("wb") as file:
                for rows in parts:
                    assert rows.shape[1:] == self.plan.row(table), "these are not the table's rows"
                    if not np.isfinite(rows).all():
                        raise DataError(f"Features of {self.plan.network} are not finite: use other weights.")
                    file.write(np.ascontiguousarray(rows, np.float32).tobytes())
                    written += len(rows)
                file.flush()
                os.fsync(file.fileno())
            if written < end - first:
                raise DataError(
                    f"{end - first - written} images cannot be read, and a store has a row for each: run `fastmpl check`, "
                    "and they are left out."
                )
            note = StoreShard(path.name, draft.stat().st_size, checksum(draft))
            (self.folder / HEADER).unlink(missing_ok=True)  # it may be there from before a shard was lost
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        _write(path.with_suffix(".json"), json.dumps(note._asdict()))

    def finish(self) -> FeatureHeader:
        """Writes the header and returns it; every shard is there."""
        shards = []
        for table, first, _ in self.plan.shards():
            note = self._note(table, first)
            assert note is not None, "a shard is missing"
            shards.append(note)
        header = FeatureHeader(self.plan, tuple(shards))
        _write(self.folder / HEADER, header.to_json())
        return header

    def _path(self, table: str, first: int) -> Path:
        return self.folder / shard_name(table, first)

    def _note(self, table: str, first: int) -> StoreShard | None:
        """What is known of a shard; None where there is no note, or none that can be read: it is written again then."""
        try:
            note = StoreShard(**json.loads(self._path(table, first).with_suffix(".json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return note if type(note.bytes) is int else None


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(text)
    draft.replace(path)
