"""Class probabilities from a file that anything may have written: NPY, CSV, or Parquet where pyarrow is installed.

A row is an image's name or index and its K probabilities. In an NPY file the index may be left out: row i is then image
i. Every image of the data set needs one row, in any order. Rows are read in parts; a file of text is first turned into
an array on disk, so that a table need not fit into memory.
"""

import csv
import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.errors import DataError
from fastmpl.data.stores.distributions import Probabilities

SUM_WITHIN = 0.01  # of 1: what half precision makes of a thousand classes is within; logits and scores are not
PART = 8192  # rows at a time

Line = tuple[str, Sequence[Any]]  # an image's name, its probabilities


@dataclass(frozen=True)
class ProbabilityTable:
    """Probabilities of every image: image i is row `order[i]` of `array`, after `skip` columns."""

    path: Path
    array: NDArray[Any]
    order: NDArray[np.int64] | None
    skip: int

    def rows(self, first: int, last: int) -> Iterator[Probabilities]:
        """The distributions of images first to last - 1 in parts [n, K]. Raises DataError for what is none."""
        for start in range(first, last, PART):
            part = np.arange(start, min(start + PART, last))
            rows = self.array[part if self.order is None else self.order[part], self.skip :].astype(np.float32)
            yield _normalise_rows(rows, start, self.path)


def _normalise_rows(rows: Probabilities, first: int, path: Path) -> Probabilities:
    """The rows divided by their sums, which are nearly 1."""
    sums = rows.sum(1, dtype=np.float64)
    wrong = np.flatnonzero(~(np.abs(sums - 1) <= SUM_WITHIN) | (rows < 0).any(1))
    if wrong.size:
        row = wrong[0]
        found = f"sums to {sums[row]:.4g}" if rows[row].min() >= 0 or np.isnan(sums[row]) else "has a negative number"
        raise DataError(
            f"{path}: the row of image {first + row} {found}. Give probabilities that sum to 1 (the softmax of "
            "logits) for every image."
        )
    return np.asarray(rows / sums[:, None], np.float32)


def read_table(path: Path, names: Sequence[str], classes: int, scratch: Path) -> ProbabilityTable:
    """The table in `path` for images of these `names`. Raises DataError, one sentence, for what cannot be used.

    scratch: a folder for the array that a file of text is turned into; who calls may delete it afterwards.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist: --from-probabilities names a file of class probabilities.")
    kind = path.suffix.lower()
    if kind == ".npy":
        return _array(path, names, classes)
    if kind not in (".csv", ".parquet"):
        raise DataError(f"{path}: probabilities are read from .npy, .csv or .parquet, not {kind or 'a nameless kind'}.")
    lines = _csv(path, classes) if kind == ".csv" else _parquet(path, classes)
    return ProbabilityTable(path, _fill_array(lines, path, names, classes, scratch), None, 0)


def _array(path: Path, names: Sequence[str], classes: int) -> ProbabilityTable:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is not an array of numpy ({error}).") from error
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] not in (classes, classes + 1):
        raise DataError(
            f"{path} holds {array.dtype} {array.shape}; expected floats [{len(names)}, {classes}], one row an image, "
            f"or [{len(names)}, {classes + 1}] with the image's index in the first column."
        )
    if array.shape[1] == classes:
        if len(array) != len(names):
            raise DataError(f"{path} has {len(array)} rows, and the data {len(names)} images: one row each is needed.")
        return ProbabilityTable(path, array, None, 0)
    place = _Places(path, names)
    order = np.empty(len(names), np.int64)
    for row, name in enumerate(array[:, 0]):
        order[place.of(f"{name:g}" if name != int(name) else str(int(name)))] = row
    place.check_all()
    return ProbabilityTable(path, array, order, 1)


class _Places:
    """Names of images -> their numbers, each asked for once."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, names
        self.numbers = {name: number for number, name in enumerate(names)}
        self.seen = np.zeros(len(names), bool)

    def of(self, name: str) -> int:
        number = self.numbers.get(name)
        if number is None and name.isdecimal() and int(name) < len(self.names):
            number = int(name)
        if number is None:
            raise DataError(
                f"{self.path} has a row for image {name!r}, which the data does not have; its images are called "
                f"{self.names[0]!r} to {self.names[-1]!r}."
            )
        if self.seen[number]:
            raise DataError(f"{self.path} has two rows for image {name!r}.")
        self.seen[number] = True
        return number

    def check_all(self) -> None:
        missing = np.flatnonzero(~self.seen)
        if missing.size:
            raise DataError(
                f"{self.path} has no row for {missing.size} of {len(self.names)} images, the first being "
                f"{self.names[missing[0]]!r}."
            )


def _fill_array(lines: Iterable[Line], path: Path, names: Sequence[str], classes: int, scratch: Path) -> NDArray[Any]:
    """The lines as an array on disk, image i in row i."""
    array = np.lib.format.open_memmap(
        scratch / "probabilities.npy", mode="w+", dtype=np.float32, shape=(len(names), classes)
    )
    place = _Places(path, names)
    for name, values in lines:
        array[place.of(name)] = values
    place.check_all()
    return array


def _csv(path: Path, classes: int) -> Iterator[Line]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, cells in enumerate(csv.reader(file), 1):
            if not cells:
                continue
            if len(cells) != classes + 1:
                raise DataError(
                    f"{path}, line {number} has {len(cells)} columns; expected {classes + 1}: the image's name or "
                    f"index and {classes} probabilities."
                )
            try:
                yield cells[0].strip(), [float(cell) for cell in cells[1:]]
            except ValueError as error:
                if number > 1:  # the first line may name the columns
                    raise DataError(f"{path}, line {number}: {error}.") from error


def _parquet(path: Path, classes: int) -> Iterator[Line]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(f"{path}: Parquet is read by pyarrow, which is not installed: pip install pyarrow.") from error
    file = parquet.ParquetFile(path)
    columns = file.metadata.num_columns
    if columns != classes + 1:
        raise DataError(
            f"{path} has {columns} columns; expected {classes + 1}: the image's name or index and {classes} "
            "probabilities."
        )
    for batch in file.iter_batches(PART):
        named, *values = (column.to_pylist() for column in batch.columns)
        for name, *row in zip(named, *values, strict=True):
            yield str(name), row
