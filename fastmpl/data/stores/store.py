"""Stored distributions of a teacher over the images of a data set: what takes its place once it has labelled them.

A store is a folder: header.json, and shards of packed rows (`distributions`), row i being that of image i. Shards are
mapped into memory, not read: looking a batch up touches its own rows, and processes that share a machine share one
copy. Every shard's size and checksum are in the header and are verified when the store is opened. Writing is
`fastmpl.data.stores.store_writer`.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.errors import DataError
from fastmpl.data.stores.distributions import Probabilities, RowFormat, Words

HEADER = "header.json"
FORMAT = "fastmpl distributions 1"
TOP_ROWS = 1 << 15


class StoreShard(NamedTuple):
    """One file of the store; rows are implied by its place."""

    file: str
    bytes: int
    blake2b: str


class PackingChange(NamedTuple):
    """What packing changed, measured when the rows were written: total variation, and the top class."""

    mean_total_variation: float
    largest_total_variation: float
    changed_top: int  # rows


class Header(NamedTuple):
    """All that header.json holds."""

    rows: int
    classes: int
    kept: int  # classes of a row; `classes`: all
    shard_rows: int  # of every shard but the last
    images: str  # digest of the images that the rows belong to
    teacher: str  # in words
    error: PackingChange
    shards: tuple[StoreShard, ...]

    @property
    def form(self) -> RowFormat:
        return RowFormat(self.classes, self.kept)

    def to_json(self) -> str:
        parts = self._asdict() | {"error": self.error._asdict(), "shards": [s._asdict() for s in self.shards]}
        return json.dumps({"format": FORMAT} | parts, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError, KeyError or TypeError where `text` is not a header."""
        parts: dict[str, Any] = json.loads(text)
        if parts.pop("format") != FORMAT:
            raise ValueError("another format")
        error, shards = PackingChange(**parts.pop("error")), tuple(StoreShard(**shard) for shard in parts.pop("shards"))
        return cls(**parts, error=error, shards=shards)


def checksum(path: Path) -> str:
    """BLAKE2b of a file, as a header writes it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@dataclass(frozen=True)
class Store:
    """An open store; made by `open_store`."""

    folder: Path
    header: Header
    tables: tuple[Words, ...]  # one mapped array [rows, words] a shard

    def lookup(self, index: NDArray[np.int64]) -> Words:
        """The packed rows [n, words] of images `index` [n]."""
        if len(self.tables) == 1:
            return np.take(self.tables[0], index, axis=0)
        rows = np.empty((len(index), self.header.form.words), np.uint16)
        shard, place = np.divmod(index, self.header.shard_rows)
        for number in np.unique(shard):
            here = np.flatnonzero(shard == number)
            rows[here] = np.take(self.tables[number], place[here], axis=0)
        return rows

    def probabilities(self, index: NDArray[np.int64]) -> Probabilities:
        """The distributions [n, K] of images `index` [n], float32."""
        return self.header.form.unpack(self.lookup(index))

    def top(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], Probabilities]:
        """The likeliest class of each of images `index` and its probability, [n] both."""
        parts = np.split(index, range(TOP_ROWS, len(index), TOP_ROWS))  # bounds the memory of unpacked rows
        found = [self.header.form.top(self.lookup(part)) for part in parts]
        return np.concatenate([number for number, _ in found]), np.concatenate([sure for _, sure in found])

    def check_fits(self, *, images: str, classes: int, key: str = "data.store") -> None:
        """Raises DataError where the store that `key` names belongs to other images, or has other classes."""
        if self.header.classes != classes:
            raise DataError(
                f"{key} = {str(self.folder)!r} holds distributions of {self.header.classes} classes, and the data "
                f"has {classes}: run `fastmpl distill` on this data."
            )
        if self.header.images != images:
            raise DataError(
                f"{key} = {str(self.folder)!r} was made for other images ({self.header.rows} of them) than this "
                "run's: run `fastmpl distill` on this data."
            )


def open_store(folder: str | Path) -> Store:
    """Opens the store in `folder`, and reads each shard once to verify it. Raises DataError, naming what is wrong."""
    folder = Path(folder)
    header = _read_header(folder)
    words, tables = header.form.words, []
    for number, shard in enumerate(header.shards):
        path = folder / shard.file
        rows = min(header.shard_rows, header.rows - number * header.shard_rows)
        size = path.stat().st_size if path.is_file() else -1
        if size != shard.bytes or size != rows * words * 2:
            found = "is missing" if size < 0 else f"holds {size} bytes"
            raise DataError(f"{path} {found}, and should hold {shard.bytes}: {_AGAIN}")
        if checksum(path) != shard.blake2b:
            raise DataError(f"{path} was altered since it was written (its checksum differs): {_AGAIN}")
        tables.append(np.memmap(path, np.uint16, "r", shape=(rows, words)).view(np.ndarray))
    return Store(folder, header, tuple(tables))


_AGAIN = "delete it and run the same `fastmpl distill` again, which writes what is missing."


def _read_header(folder: Path) -> Header:
    path = folder / HEADER
    if not path.is_file():
        unfinished = f"is not finished ({len(list(folder.glob('*.json')))} files say what is written)"
        found = unfinished if folder.is_dir() and any(folder.glob("shard-*")) else "holds no stored distributions"
        raise DataError(f"{folder} {found}: run `fastmpl distill` with data.store set to it.")
    try:
        header = Header.from_json(path.read_text())
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the header of stored distributions ({error}): {_AGAIN}") from error
    if len(header.shards) != -(-header.rows // max(header.shard_rows, 1)):
        raise DataError(f"{path} names {len(header.shards)} shards, too few or too many for its rows: {_AGAIN}")
    return header
