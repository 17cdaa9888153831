"""The list of a data set's bad images: `fastmpl check` writes it, and every later run leaves out what it names.

It lies in the user's cache, one file for each data set as it was listed: JSON, a line each. Where images were added or
taken away the list is another data set's, and is not used until the new one is checked. All ranks that share a cache
leave out the same; those that do not are found out when training starts, by the fingerprint of their data.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.checks.scan import Scan, scan
from fastmpl.data.dataset import Arrays, Labels, Problem
from fastmpl.data.files.encoded import Chosen, Encoded, Pieces
from fastmpl.data.readers.cache import cache_folder

FORMAT: Final = "fastmpl check 1"
Set = Literal["train", "test"]
Tell = Callable[[int, int], None]  # images done, images in all


class Line(NamedTuple):
    """One image that is left out, or (`used`) odd."""

    set: Set
    index: int  # type: ignore[assignment]  # in its set as it was listed; hides tuple.index, which nobody needs
    file: str
    reason: str
    used: bool


class Found(NamedTuple):
    """What checking found: hashes of the pixels of all training and test images, by their place in the list."""

    train: Scan
    test: Scan
    file: Path | None  # the list, None where no cache can be written

    def kept(self, which: Set) -> NDArray[np.uint64]:
        """The hashes of the images that a run has: all but the bad ones, where these could be written down."""
        digests: NDArray[np.uint64] = getattr(self, which).digests
        return digests if self.file is None else digests[digests != 0]


def _encoded(images: object) -> Encoded:
    assert not isinstance(images, np.ndarray)
    return images  # type: ignore[return-value]


def _place(arrays: Arrays, root: str) -> Path | None:
    """Where the list of these images is."""
    cache = cache_folder()
    known = hashlib.blake2b(os.fsencode(Path(root).expanduser().resolve()), digest_size=8)
    known.update((_encoded(arrays.train_images).digest + _encoded(arrays.test_images).digest).encode())
    return cache / f"checked-{known.hexdigest()}.jsonl" if cache else None


def _called(images: Encoded, index: int) -> str:
    """What a user finds an image by: a file's path, or the shard and the name in it."""
    name = images.names[index]
    return f"{images.shards[images.shard[index]]}: {name}" if isinstance(images, Pieces) else name


def _lines(which: Set, images: Encoded, found: Scan) -> list[Line]:
    return [
        Line(which, index, _called(images, index), reason, used)
        for reasons, used in ((found.bad, False), (found.odd, True))
        for index, reason in sorted(reasons.items())
    ]


def check_all(arrays: Arrays, root: str, tell: Tell, processes: int = 0) -> Found:
    """Decodes every image of `arrays` as it was listed, and writes the list of those that are bad or odd."""
    train, test = _encoded(arrays.train_images), _encoded(arrays.test_images)
    count = len(train) + len(test)
    trained = scan(train, processes=processes, tell=lambda done: tell(done, count))
    tested = scan(test, processes=processes, tell=lambda done: tell(len(train) + done, count))
    file = _place(arrays, root)
    if file is not None:
        lines = _lines("train", train, trained) + _lines("test", test, tested)
        head = {"format": FORMAT, "root": root, "images": count}
        draft = file.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text("".join(json.dumps(line) + "\n" for line in (head, *(line._asdict() for line in lines))))
        draft.replace(file)
    return Found(trained, tested, file)


def _read(file: Path) -> list[Line]:
    """The lines of a list; none where there is no whole one."""
    try:
        head, *rows = (json.loads(line) for line in file.read_text().splitlines())
        if head["format"] != FORMAT:
            return []
        return [Line(**row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _kept(lines: list[Line], which: Set, count: int) -> Labels:
    keep = np.ones(count, dtype=bool)
    keep[[line.index for line in lines if line.set == which and not line.used]] = False
    return np.flatnonzero(keep)


def left_out(arrays: Arrays, root: str) -> Arrays:
    """`arrays` without the images that were found bad when they were checked; as they are where they never were."""
    file = _place(arrays, root)
    lines = _read(file) if file else []
    problems = tuple(Problem(str(Path(root) / line.file), line.reason, line.used) for line in lines)
    changed: dict[str, Any] = {"problems": arrays.problems + problems}
    some = _kept(lines, "train", len(arrays.train_labels))
    if len(some) < len(arrays.train_labels):
        images = Chosen(_encoded(arrays.train_images), some)
        changed |= {"train_images": images, "train_labels": arrays.train_labels[some], "names": images.names}
        if arrays.trusted is not None:
            changed["trusted"] = np.flatnonzero(np.isin(some, arrays.trusted))
    some = _kept(lines, "test", len(arrays.test_labels))
    if len(some) < len(arrays.test_labels):
        images = Chosen(_encoded(arrays.test_images), some)
        changed |= {"test_images": images, "test_labels": arrays.test_labels[some]}
    return arrays._replace(**changed)
