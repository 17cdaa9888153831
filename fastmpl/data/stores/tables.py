"""Reads class probabilities from a file that any program may have written: NPY, CSV, or Parquet (which needs pyarrow).

A row is the name or index of an image and its K probabilities. An NPY file may leave the index out: row i is then image
i. Every training image needs one row, in any order. Rows are read in parts, and a file of text is first turned into an
array on disk, so that a table need not fit into memory.
"""

import csv
import importlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.errors import DataError, printable
from fastmpl.data.stores.columns import Columns, find_columns, looks_like_header, to_number
from fastmpl.data.stores.distributions import Probabilities
from fastmpl.data.stores.image_rows import ImageRows
from fastmpl.data.stores.rounding import PERCENT, find_scale, normalise_rows
from fastmpl.untrusted import DAMAGED_ARRAY

PART: Final = 8192  # rows at a time
SHOWN: Final = 10  # classes in a remark
_ENCODINGS: Final = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # by the first bytes of a file; else UTF-8

Line = tuple[str, Sequence[Any]]  # an image's name, its probabilities in the order of the data's classes


@dataclass(frozen=True)
class ProbabilityTable:
    """Probabilities of every training image: image i is row `order[i]` of `array` (None: row i), after `skip` columns.

    scale: what a row sums to. remarks: what a user should know of how the file was read.
    """

    path: Path
    array: NDArray[Any]
    order: NDArray[np.int64] | None
    skip: int
    scale: float = 1.0
    remarks: tuple[str, ...] = ()

    def rows(self, first: int, last: int) -> Iterator[Probabilities]:
        """The distributions of images first to last - 1 in parts [n, K]. Raises DataError where a row is not one."""
        for start in range(first, last, PART):
            yield normalise_rows(self._part(start, min(start + PART, last)), self.scale, start, self.path)

    def check(self) -> "ProbabilityTable":
        """Reads all rows; the table with the scale that was found. Raises DataError where any row is not a distribution."""
        count = len(self.array) if self.order is None else len(self.order)
        scale = find_scale(self._part(0, min(PART, count)))
        said = (f"The rows of {printable(self.path)} sum to 100: they are read as percentages.",)
        remarks = self.remarks + (said if scale == PERCENT else ())
        table = replace(self, scale=scale, remarks=remarks)
        for _ in table.rows(0, count):
            pass
        return table

    def _part(self, first: int, last: int) -> Probabilities:
        part = np.arange(first, last)
        return self.array[part if self.order is None else self.order[part], self.skip :].astype(np.float32)


def read_table(
    path: Path, names: Sequence[str], classes: Sequence[str], scratch: Path, left_out: Collection[str] = ()
) -> ProbabilityTable:
    """The table in `path` for training images of these `names`. Every row is checked.

    classes: those of the data; a header that names them in another order is followed. left_out: names of files that
    cannot be used, whose rows are ignored. scratch: a folder for the array that a file of text is turned into; whoever
    calls may delete it afterwards. Raises DataError, one sentence, for what cannot be used.
    """
    if not path.is_file():
        raise DataError(f"{printable(path)} does not exist: --from-probabilities names a file of class probabilities.")
    kind, rows = path.suffix.lower(), ImageRows(path, names, left_out)
    if kind == ".npy":
        return _read_npy(path, names, classes, rows).check()
    if kind not in (".csv", ".parquet"):
        raise DataError(
            f"{printable(path)}: probabilities are read from .npy, .csv or .parquet, not {kind or 'a nameless kind'}."
        )
    remarks: list[str] = []
    lines = (_read_csv if kind == ".csv" else _read_parquet)(path, classes, remarks)
    array = _fill_array(lines, len(names), len(classes), rows, scratch)
    return ProbabilityTable(path, array, None, 0, remarks=(*remarks, *rows.remarks())).check()


def _say_positions(path: Path, classes: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in classes[:SHOWN]) + (", ..." if len(classes) > SHOWN else "")
    return f"{printable(path)} names no classes: its columns are read in the order {shown}."


def _read_npy(path: Path, names: Sequence[str], classes: Sequence[str], rows: ImageRows) -> ProbabilityTable:
    count = len(classes)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, *DAMAGED_ARRAY) as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise DataError(f"{printable(path)} is not an array of numpy ({reason}).") from error
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] not in (count, count + 1):
        raise DataError(
            f"{printable(path)} holds {array.dtype} {array.shape}; expected floats [{len(names)}, {count}], one row an "
            f"image, or [{len(names)}, {count + 1}] with the image's index in the first column."
        )
    said = _say_positions(path, classes)
    if array.shape[1] == count:
        if len(array) != len(names):
            raise DataError(
                f"{printable(path)} has {len(array)} rows, and the data {len(names)} training images. Each needs one row; "
                "with the image's index in a first column, other rows are ignored."
            )
        return ProbabilityTable(path, array, None, 0, remarks=(said,))
    order = np.empty(len(names), np.int64)
    for row, index in enumerate(array[:, 0].tolist()):
        place = rows.place(str(int(index)) if float(index).is_integer() else f"{index:g}")
        if place is not None:
            order[place] = row
    rows.check_complete()
    return ProbabilityTable(path, array, order, 1, remarks=(said, *rows.remarks()))


def _fill_array(lines: Iterable[Line], images: int, classes: int, rows: ImageRows, scratch: Path) -> NDArray[Any]:
    """The lines as an array on disk, image i in row i."""
    file = scratch / "probabilities.npy"
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(images, classes))
    for name, values in lines:
        place = rows.place(name)
        if place is not None:
            array[place] = values
    rows.check_complete()
    return array


def _delimiter(line: str, classes: int) -> str:
    """What separates a name and as many numbers as there are classes; a comma where nothing fits.

    Spreadsheets write semicolons and tabs as well. As many commas may stand within the numbers, so that they come last.
    """
    marks = (";", "\t", ",")
    fits = [mark for mark in marks if line.count(mark) == classes]
    return next(iter(fits), next((mark for mark in reversed(marks) if mark in line), ","))


def _cells(path: Path, classes: int) -> Iterator[tuple[int, list[str]]]:
    """The numbers of the lines of a CSV file, and their cells. Raises DataError where it is no text or no CSV."""
    with path.open("rb") as raw:
        encoding = _ENCODINGS.get(raw.read(2), "utf-8-sig")
    try:
        with path.open(newline="", encoding=encoding) as file:
            delimiter = _delimiter(file.readline(), classes)
            file.seek(0)
            for number, cells in enumerate(csv.reader(file, delimiter=delimiter), 1):
                if cells:
                    yield number, cells
    except UnicodeError as error:
        raise DataError(f"{printable(path)} is not text in UTF-8 or UTF-16. Save it as CSV in UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"{printable(path)} is not a CSV file ({error}).") from error


def _read_csv(path: Path, classes: Sequence[str], remarks: list[str]) -> Iterator[Line]:
    columns: Columns | None = None
    for number, cells in _cells(path, len(classes)):
        if len(cells) != len(classes) + 1:
            raise DataError(
                f"{printable(path)}, line {number} has {len(cells)} columns; expected {len(classes) + 1}: the image's "
                f"name or index and {len(classes)} probabilities."
            )
        if columns is None:
            header = cells if looks_like_header(cells, classes) else None
            columns = find_columns(header, len(cells), classes, path)
            remarks += [] if columns.named else [_say_positions(path, classes)]
            if header is not None:
                continue
        try:
            values = [to_number(str(cell)) for cell in columns.values(cells)]
        except ValueError as error:
            raise DataError(f"{printable(path)}, line {number}: {error}. Write a probability in each cell.") from error
        yield cells[columns.image].strip(), values


def _read_parquet(path: Path, classes: Sequence[str], remarks: list[str]) -> Iterator[Line]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(
            f"{printable(path)}: Parquet is read by pyarrow, which is not installed: pip install pyarrow."
        ) from error
    try:
        file = parquet.ParquetFile(path)
        names = list(file.schema_arrow.names)
        columns = find_columns(names, len(names), classes, path)
        remarks += [] if columns.named else [_say_positions(path, classes)]
        for batch in file.iter_batches(PART):
            cells = [column.to_pylist() for column in batch.columns]
            for line in zip(*cells, strict=True):
                yield str(line[columns.image]), [float(str(cell)) for cell in columns.values(line)]
    except (ValueError, OSError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{printable(path)} cannot be read as a table of probabilities ({error}).") from error
