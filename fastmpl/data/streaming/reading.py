"""Reads the pictures of a batch, and replaces those that cannot be read.

An image that cannot be read or decoded is replaced by another image of the same stream, and of the same class where the
stream knows classes. Seed and image alone decide which one. So a run on any number of ranks, and a run that resumes,
replaces it by the same image, and no state is kept.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np

from fastmpl.data import draws
from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.decode import reason_of
from fastmpl.data.files.encoded import Encoded, Index
from fastmpl.data.files.portable import BadImage, Picture, make_portable
from fastmpl.data.sampler import Samples
from fastmpl.data.view_stream import Replacement

READERS: Final = 4  # the least number of threads of a stream: each waits for a disk
TRIALS: Final = 20  # images that are tried in the place of one before the disk is to blame


class Pictures(NamedTuple):
    """The pictures of one rank's batch for DALI to decode, which images these are, and which of them replace others."""

    pictures: list[Picture]
    rows: Samples
    replaced: tuple[Replacement, ...]


class Reader:
    """Reads the images of a stream over `members`, with at least `threads` threads.

    classes: the class of every image of the data set, where an image must be replaced by one of its class; None: by any.
    """

    def __init__(
        self, images: Encoded, members: Index, seed: int, *, classes: Index | None = None, threads: int = 1
    ) -> None:
        self._images, self._members, self._classes = images, members, classes
        self._key = draws.key(seed, draws.Purpose.REPLACE)
        self._distrusted: set[int] = set()
        self._pool = ThreadPoolExecutor(max(threads, READERS), thread_name_prefix="reader")

    def read(self, rows: Samples) -> Pictures:
        """Reads the pictures of `rows`. Raises DataError where no image can be read in the place of one."""
        found = list(self._pool.map(self._find_usable, rows.index.tolist()))
        replaced = [
            Replacement(place, int(rows.index[place]), used, reason)
            for place, (_, used, reason) in enumerate(found)
            if reason
        ]
        index = np.array([used for _, used, _ in found], np.int64)
        return Pictures([picture for picture, _, _ in found], Samples(index, rows.epoch), tuple(replaced))

    def distrust(self, index: Index) -> None:
        """Marks images of which one ended a pipeline: from now on they are decoded here, which finds that one."""
        self._distrusted.update(index.tolist())

    def _find_usable(self, index: int) -> tuple[Picture, int, str]:
        """The image, or the first usable image in its place: its picture, its number, and why `index` was not used."""
        picture, reason = self._try(index)
        if picture is not None:
            return picture, index, ""
        candidates = self._members if self._classes is None else self._of_same_class(index, self._classes)
        for trial in range(TRIALS):
            word = draws.extend(draws.extend(self._key, index), trial)
            by = int(candidates[int(word) % len(candidates)])
            picture, _ = self._try(by)
            if picture is not None:
                return picture, by, reason
        raise DataError(
            f"{printable(self._images.names[index])} cannot be used ({reason}), nor can {TRIALS} images drawn in its "
            "place: see whether the disk with the images is still there, and run `fastmpl check`."
        )

    def _of_same_class(self, index: int, classes: Index) -> Index:
        return np.asarray(self._members[classes[self._members] == classes[index]])

    def _try(self, index: int) -> tuple[Picture | None, str]:
        try:
            return make_portable(self._images.read(index), trusted=index not in self._distrusted), ""
        except BadImage as error:
            return None, str(error)
        except OSError as error:
            return None, reason_of(error)
