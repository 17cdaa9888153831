"""The list of bad images of a data set: `fastmpl check` writes it, and every later run leaves those images out.

The list lies in the user's cache, one file of JSON lines for each data set. Its name is a hash of the names of the
images, so a data set with other images has no list until it is checked. Ranks that share a cache leave out the same
images; ranks whose data differ are found when training starts, by the fingerprint of the data.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.config.paths import expand_path
from fastmpl.data.checks.scan import Scan, scan
from fastmpl.data.dataset import Arrays, Labels
from fastmpl.data.files.encoded import Encoded, Subset
from fastmpl.data.inventory import Problem
from fastmpl.data.readers.cache import cache_folder
from fastmpl.untrusted import read_bytes

FORMAT: Final = "fastmpl check 1"
SetName = Literal["train", "test"]
OnProgress = Callable[[int, int], None]  # images done, images in all


class CheckedImage(NamedTuple):
    """An image that is bad and left out, or (`used`) odd and used."""

    set: SetName
    index: int  # type: ignore[assignment]  # in its set, bad images included; hides tuple.index, which is not needed
    file: str
    reason: str
    used: bool


class CheckedImages(NamedTuple):
    """The scans of all training and test images, bad ones included."""

    train: Scan
    test: Scan
    file: Path | None  # of the list that was written; None where no cache can be written

    def kept(self, which: SetName) -> NDArray[np.uint64]:
        """The hashes of the images that a run will use: all but the bad ones, if the list of these was written."""
        digests: NDArray[np.uint64] = getattr(self, which).digests
        return digests if self.file is None else digests[digests != 0]


def _as_encoded(images: object) -> Encoded:
    assert not isinstance(images, np.ndarray)
    return images  # type: ignore[return-value]


def _list_file(arrays: Arrays, root: str) -> Path | None:
    """The file of the list of these images."""
    cache = cache_folder()
    known = hashlib.blake2b(os.fsencode(Path(expand_path(root, "data.root")).resolve()), digest_size=8)
    known.update((_as_encoded(arrays.train_images).digest + _as_encoded(arrays.test_images).digest).encode())
    return cache / f"checked-{known.hexdigest()}.jsonl" if cache else None


def _lines(which: SetName, images: Encoded, found: Scan) -> list[CheckedImage]:
    return [
        CheckedImage(which, index, images.full_name(index), reason, used)
        for reasons, used in ((found.bad, False), (found.odd, True))
        for index, reason in sorted(reasons.items())
    ]


def check_all(arrays: Arrays, root: str, on_progress: OnProgress, processes: int = 0) -> CheckedImages:
    """Decodes every image of `arrays`, and writes the list of those that are bad or odd."""
    train, test = _as_encoded(arrays.train_images), _as_encoded(arrays.test_images)
    count = len(train) + len(test)
    trained = scan(train, processes=processes, on_progress=lambda done: on_progress(done, count))
    tested = scan(test, processes=processes, on_progress=lambda done: on_progress(len(train) + done, count))
    file = _list_file(arrays, root)
    if file is not None:
        lines = _lines("train", train, trained) + _lines("test", test, tested)
        head = {"format": FORMAT, "root": root, "images": count}
        draft = file.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text("".join(json.dumps(line) + "\n" for line in (head, *(line._asdict() for line in lines))))
        draft.replace(file)
    return CheckedImages(trained, tested, file)


def _read_list(file: Path) -> list[CheckedImage]:
    """The images of a list; none where the list is missing or damaged."""
    try:
        head, *rows = (json.loads(line) for line in read_bytes(file).decode().splitlines())
        found = [CheckedImage(**row) for row in rows]
        return found if head["format"] == FORMAT and all(map(_is_sound, found)) else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _is_sound(line: CheckedImage) -> bool:
    texts = isinstance(line.file, str) and isinstance(line.reason, str) and line.set in ("train", "test")
    return texts and type(line.index) is int and line.index >= 0 and isinstance(line.used, bool)


def _good_positions(lines: list[CheckedImage], which: SetName, count: int) -> Labels:
    keep = np.ones(count, dtype=bool)
    keep[[line.index for line in lines if line.set == which and not line.used and line.index < count]] = False
    return np.flatnonzero(keep)


def drop_bad_images(arrays: Arrays, root: str) -> Arrays:
    """Leaves out of `arrays` the images that `check_all` found bad; unchanged where it never ran."""
    file = _list_file(arrays, root)
    lines = _read_list(file) if file else []
    place = Path(expand_path(root, "data.root"))
    problems = tuple(Problem(str(place / line.file), line.reason, line.used) for line in lines)
    changed: dict[str, Any] = {"problems": arrays.problems + problems}
    some = _good_positions(lines, "train", len(arrays.train_labels))
    if len(some) < len(arrays.train_labels):
        images = Subset(_as_encoded(arrays.train_images), some)
        changed |= {"train_images": images, "train_labels": arrays.train_labels[some], "names": images.names}
        if arrays.trusted is not None:
            changed["trusted"] = np.flatnonzero(np.isin(some, arrays.trusted))
    some = _good_positions(lines, "test", len(arrays.test_labels))
    if len(some) < len(arrays.test_labels):
        images = Subset(_as_encoded(arrays.test_images), some)
        changed |= {"test_images": images, "test_labels": arrays.test_labels[some]}
    return arrays._replace(**changed)
