"""Reads the stored class distributions of a teacher over the images of a data set, which replace the teacher in a run.

A store is a folder with header.json and shards of packed rows (`distributions`): row i belongs to image i. Shards are
mapped into memory, so that a look-up reads its own rows alone, and processes of one machine share one copy. The header
holds the size and checksum of every shard; they are verified when the store is opened, and so is every row.
`fastmpl.data.stores.store_writer` writes stores.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.classes import class_order
from fastmpl.data.errors import DataError, printable
from fastmpl.data.stores.distributions import Probabilities, RowFormat, Words
from fastmpl.untrusted import LARGEST_JSON, read_bytes

HEADER = "header.json"
FORMAT = "fastmpl distributions 1"
MOST = 1 << 40  # rows, classes
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\.bin")
TOP_ROWS = 1 << 15  # unpacked at a time, which bounds the memory


class StoreShard(NamedTuple):
    """One file of a store. Its place in the header says which rows it holds."""

    file: str
    bytes: int
    blake2b: str


class PackingChange(NamedTuple):
    """How far packing changed the rows, measured when they were written."""

    mean_total_variation: float
    largest_total_variation: float
    changed_top: int  # rows


class StoreHeader(NamedTuple):
    """The contents of header.json."""

    rows: int
    classes: int
    kept: int  # classes of a row; `classes`: all
    shard_rows: int  # of every shard but the last
    images: str  # digest of the images that the rows belong to
    teacher: str  # in words
    error: PackingChange
    shards: tuple[StoreShard, ...]
    class_names: tuple[str, ...] = ()  # in the order of the rows; empty in a store of version 0.1.0

    @property
    def form(self) -> RowFormat:
        return RowFormat(self.classes, self.kept)

    def to_json(self) -> str:
        parts = self._asdict() | {"error": self.error._asdict(), "shards": [s._asdict() for s in self.shards]}
        return json.dumps({"format": FORMAT} | parts, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError, KeyError, TypeError or AttributeError where `text` is not a header."""
        parts: dict[str, Any] = json.loads(text)
        if parts.pop("format") != FORMAT:
            raise ValueError("another format")
        error, shards = PackingChange(**parts.pop("error")), tuple(StoreShard(**shard) for shard in parts.pop("shards"))
        if not all(type(shard.bytes) is int and isinstance(shard.blake2b, str) for shard in shards):
            raise ValueError("a shard has no size or checksum")
        names = tuple(map(str, parts.pop("class_names", ())))
        header = cls(**parts, error=error, shards=shards, class_names=names)
        header._check()
        return header

    def _check(self) -> None:
        """Raises ValueError or TypeError where the numbers do not go together."""
        for name in ("rows", "classes", "kept", "shard_rows"):
            if type(value := getattr(self, name)) is not int or not 1 <= value <= MOST:
                raise ValueError(f"{name} is {str(value)[:40]}")
        if not isinstance(self.images, str) or not isinstance(self.teacher, str):
            raise ValueError("images or teacher is no text")
        if not all(isinstance(part, int | float) and math.isfinite(part) for part in self.error):
            raise ValueError("error holds no numbers")
        if self.kept > self.classes:
            raise ValueError(f"kept is {self.kept} of {self.classes} classes")
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} names for {self.classes} classes")
        if not all(_SHARD_NAME.fullmatch(str(shard.file)) for shard in self.shards):
            raise ValueError("a shard lies outside the store")
        if len(self.shards) != -(-self.rows // self.shard_rows):
            raise ValueError(f"{len(self.shards)} shards for {self.rows} rows")


def checksum(path: Path) -> str:
    """The BLAKE2b hash of a file, as a header holds it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@dataclass(frozen=True)
class Store:
    """An open store; made by `open_store`."""

    folder: Path
    header: StoreHeader
    tables: tuple[Words, ...]  # one mapped array [rows, words] a shard
    order: NDArray[np.int64] | None = None  # [K], the stored column of each of the data's classes; None: the same order

    def lookup(self, index: NDArray[np.int64]) -> Words:
        """The packed rows [n, words] of images `index` [n], in the order of the stored classes."""
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
        rows = self.header.form.unpack(self.lookup(index))
        return rows if self.order is None else np.ascontiguousarray(rows[:, self.order])

    def top(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], Probabilities]:
        """The likeliest class of each of images `index` and its probability, [n] both."""
        parts = np.split(index, range(TOP_ROWS, len(index), TOP_ROWS))
        found = [self.header.form.top(self.lookup(part)) for part in parts]
        number = np.concatenate([number for number, _ in found])
        place = number if self.order is None else np.argsort(self.order)[number]
        return place, np.concatenate([sure for _, sure in found])

    def fit(self, *, images: str, classes: Sequence[str], key: str = "data.store") -> Self:
        """This store with its columns in the order of `classes`, the data's. A store of version 0.1.0 has no names.

        Raises DataError where the store that `key` names belongs to other images, or has other classes.
        """
        where = f"{key} = {printable(self.folder)!r}"
        if self.header.classes != len(classes):
            raise DataError(
                f"{where} holds distributions of {self.header.classes} classes, and the data has {len(classes)}: run "
                "`fastmpl distill` on this data."
            )
        if self.header.images != images:
            raise DataError(
                f"{where} was made for other images ({self.header.rows} of them) than this run's: run `fastmpl distill` "
                "on this data."
            )
        if not self.header.class_names:
            return self
        order = class_order(self.header.class_names, classes, where)
        return self if bool((order == np.arange(len(order))).all()) else replace(self, order=order)


def open_store(folder: str | Path) -> Store:
    """Opens the store in `folder` and verifies every shard and row. Raises DataError, naming what is wrong."""
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
        table: Words = np.memmap(path, np.uint16, "r", shape=(rows, words)).view(np.ndarray)
        for first in range(0, rows, TOP_ROWS):
            if fault := header.form.faults(table[first : first + TOP_ROWS]):
                raise DataError(f"{path} {fault}: {_AGAIN}")
        tables.append(table)
    return Store(folder, header, tuple(tables))


_AGAIN = "delete it and run the same `fastmpl distill` again, which writes what is missing."


def _read_header(folder: Path) -> StoreHeader:
    path = folder / HEADER
    if not path.is_file():
        unfinished = f"is not finished ({len(list(folder.glob('*.json')))} files say what is written)"
        found = unfinished if folder.is_dir() and any(folder.glob("shard-*")) else "holds no stored distributions"
        raise DataError(f"{folder} {found}: run `fastmpl distill` with data.store set to it.")
    try:
        header = StoreHeader.from_json(read_bytes(path, LARGEST_JSON).decode())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not the header of stored distributions ({error}): {_AGAIN}") from error
    if len(header.shards) != -(-header.rows // max(header.shard_rows, 1)):
        raise DataError(f"{path} names {len(header.shards)} shards, too few or too many for its rows: {_AGAIN}")
    return header
