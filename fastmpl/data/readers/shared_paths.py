"""Finds test images that a root's other lists name too, by their paths alone: no file is opened.

`fastmpl check` compares pixels, and so finds copies under other names as well.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from fastmpl.data.errors import printable
from fastmpl.data.readers.file_list import FileList

_TOO_HIGH: Final = "they are trained on with their labels, and accuracy on them says nothing"
_WHY: Final = {"labelled": _TOO_HIGH, "trusted": _TOO_HIGH, "unlabelled": "they are trained on, without their labels"}


def _shared(one: FileList, other: FileList) -> Iterator[str]:
    """The normal paths of `one` that `other` has, too. Equal hashes may be of different paths, so these are compared."""
    mine = np.flatnonzero(np.isin(one.keys, other.keys))
    if not len(mine):
        return
    theirs = {os.path.normpath(other.names[at]) for at in np.flatnonzero(np.isin(other.keys, one.keys[mine])).tolist()}
    yield from (path for at in mine.tolist() if (path := os.path.normpath(one.names[at])) in theirs)


def describe_shared_paths(lists: Mapping[str, FileList]) -> Iterator[str]:
    """A sentence for the user on each list whose images are also test images. lists: those of a root, by part."""
    for part, why in _WHY.items():
        found = list(_shared(lists["test"], lists[part]))
        if found:
            yield f"test images that are also in the list {part}: {len(found):,}, such as {printable(found[0])}; {why}"
