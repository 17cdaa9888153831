"""What a finished run's networks said of single images: `predictions.npz`, from which a report draws its pictures.

The file holds plain arrays and no Python objects: `classes`, `network`, `step`, and a group of columns for each split and
for the pseudo labels (`test/truth`, `labels/label`, ...), named by the fields below. A reader trusts nothing in it.
"""

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fastmpl.untrusted import DAMAGED_ARRAY

FILE: Final = "predictions.npz"
SPLITS: Final = ("validation", "test")
LARGEST: Final = 1 << 30  # bytes of one array: a damaged or hostile file must not fill the memory

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Strings = NDArray[np.str_]
Pictures = NDArray[np.uint8]


class Predictions(NamedTuple):
    """One network's answers on N images of a split, and small pictures of m of them."""

    names: Strings  # [N], of the files
    truth: Ints  # [N]
    predicted: Ints  # [N]
    confidence: Floats  # [N], probability of the predicted class
    second: Ints  # [N], the class after it
    second_confidence: Floats  # [N]
    shown: Ints  # [m], rows that have a picture
    pictures: Pictures  # [m, side, side, 3]

    @property
    def right(self) -> NDArray[np.bool_]:
        """[N], whether the predicted class is the true one."""
        right: NDArray[np.bool_] = self.predicted == self.truth
        return right


class LabelSample(NamedTuple):
    """The pseudo labels of n unlabelled images at the end of a run, and both views of m of them.

    `view` names the view that was labelled. `threshold` is the confidence below which a label does not count; 0: all do.
    """

    names: Strings  # [n]
    truth: Ints  # [n], -1 where unknown; never seen in training
    label: Ints  # [n], the likeliest class
    confidence: Floats  # [n]
    shown: Ints  # [m], rows that have pictures
    weak: Pictures  # [m, side, side, 3]
    strong: Pictures  # [m, side, side, 3]
    labeller: str = ""
    view: str = ""
    threshold: float = 0.0


class Record(NamedTuple):
    """The content of `predictions.npz`. `network` and `step` name whose answers they are; step -1: not one step's."""

    classes: tuple[str, ...]
    network: str
    step: int
    splits: Mapping[str, Predictions]
    labels: LabelSample | None = None

    def encode(self) -> bytes:
        """The bytes of the file; the same for the same content."""
        arrays: dict[str, Any] = {"classes": np.array(self.classes, np.str_)}
        arrays |= {"network": np.array(self.network), "step": np.array(self.step)}
        groups: dict[str, Any] = {**self.splits} | ({} if self.labels is None else {"labels": self.labels})
        arrays |= {f"{group}/{name}": value for group, row in groups.items() for name, value in row._asdict().items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> Self:
        """The content of a file. Raises OSError where it cannot be read, ValueError with a sentence where it is damaged."""
        try:
            with zipfile.ZipFile(path) as file:
                largest = max((member.file_size for member in file.infolist()), default=0)
            if largest > LARGEST:
                raise ValueError(f"an array has {largest:,} bytes")
            with np.load(path, allow_pickle=False) as file:
                return cls._of({str(name): file[name] for name in file.files})
        except DAMAGED_ARRAY as error:
            raise ValueError(f"{path.name} is damaged: {error}.") from error

    @classmethod
    def _of(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        classes = tuple(map(str, _column(arrays, "classes", "U", 1)))
        splits = {split: _predictions(arrays, split, len(classes)) for split in SPLITS if f"{split}/truth" in arrays}
        labels = _label_sample(arrays, len(classes)) if "labels/label" in arrays else None
        return cls(classes, _word(arrays, "network"), int(_column(arrays, "step", "i", 0)), splits, labels)


def _column(arrays: Mapping[str, NDArray[Any]], name: str, kind: str, axes: int) -> NDArray[Any]:
    """The array `name`, if it is of that kind (a letter of numpy's) and number of axes. Raises ValueError if not."""
    found = arrays[name]
    if found.dtype.kind != kind or found.ndim != axes:
        raise ValueError(f"{name} has dtype {found.dtype} and shape {found.shape}")
    return found


def _word(arrays: Mapping[str, NDArray[Any]], name: str) -> str:
    return str(_column(arrays, name, "U", 0))


def _columns(arrays: Mapping[str, NDArray[Any]], group: str, kinds: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Columns of one length, by name. Raises ValueError where they are not."""
    found = {name: _column(arrays, f"{group}/{name}", kind, 1) for name, kind in kinds.items()}
    if len({len(column) for column in found.values()}) > 1:
        raise ValueError(f"the columns of {group} differ in length")
    return found


def _require_range(found: Mapping[str, NDArray[Any]], group: str, low: int, high: int) -> None:
    for name, column in found.items():
        if column.size and not (low <= column.min() and column.max() < high):
            raise ValueError(f"{group}/{name} has values from {column.min()} to {column.max()}")


def _pictures(arrays: Mapping[str, NDArray[Any]], group: str, name: str, count: int) -> Pictures:
    found = _column(arrays, f"{group}/{name}", "u", 4)
    if found.dtype != np.uint8 or found.shape[0] != count or found.shape[-1] != 3 or 0 in found.shape[1:]:
        raise ValueError(f"{group}/{name} has dtype {found.dtype} and shape {found.shape}")
    return found


def _shown(arrays: Mapping[str, NDArray[Any]], group: str, rows: int) -> Ints:
    found = _column(arrays, f"{group}/shown", "i", 1)
    _require_range({"shown": found}, group, 0, rows)
    return found


def _predictions(arrays: Mapping[str, NDArray[Any]], split: str, classes: int) -> Predictions:
    kinds = {"names": "U", "truth": "i", "predicted": "i", "confidence": "f", "second": "i", "second_confidence": "f"}
    found = _columns(arrays, split, kinds)
    _require_range({name: found[name] for name in ("truth", "predicted", "second")}, split, 0, classes)
    shown = _shown(arrays, split, len(found["truth"]))
    return Predictions(**found, shown=shown, pictures=_pictures(arrays, split, "pictures", len(shown)))


def _label_sample(arrays: Mapping[str, NDArray[Any]], classes: int) -> LabelSample:
    found = _columns(arrays, "labels", {"names": "U", "truth": "i", "label": "i", "confidence": "f"})
    _require_range({"truth": found["truth"]}, "labels", -1, classes)
    _require_range({"label": found["label"]}, "labels", 0, classes)
    shown = _shown(arrays, "labels", len(found["label"]))
    return LabelSample(
        **found,
        shown=shown,
        weak=_pictures(arrays, "labels", "weak", len(shown)),
        strong=_pictures(arrays, "labels", "strong", len(shown)),
        labeller=_word(arrays, "labels/labeller"),
        view=_word(arrays, "labels/view"),
        threshold=float(_column(arrays, "labels/threshold", "f", 0)),
    )


def read_record(folder: Path) -> Record | None:
    """The predictions of the run in `folder`; None where it has none, as a run that has not ended or is older.

    Raises ValueError with a sentence where the file is damaged or cannot be read.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return None
    try:
        return Record.read(path)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}.") from error
