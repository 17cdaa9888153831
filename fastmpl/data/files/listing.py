"""Which image files lie below a folder, in an order that no file system decides.

Folders are read by several threads, because on a network disk each is a wait. No file is opened, nor asked for its size:
a million files would cost a million questions. What is kept of a file is its name, in one string with the others.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from fastmpl.data.dataset import Problem
from fastmpl.data.files.decode import SUFFIXES
from fastmpl.data.files.encoded import Names

THREADS: Final = 16  # they wait for a disk, not for a core
_IGNORED: Final = ("thumbs.db", "desktop.ini")  # and whatever begins with a dot


class Found(NamedTuple):
    """Image files below a folder, by their paths below the root, and files that are none."""

    names: Names
    problems: list[Problem]


class _Folder(NamedTuple):
    """What lies directly in one folder, sorted."""

    images: Names  # by their paths below the root
    others: tuple[str, ...]  # files without the extension of an image
    folders: tuple[str, ...]


def visible(name: str) -> bool:
    """Whether a file is the user's own rather than the operating system's."""
    return not name.startswith(".") and name.lower() not in _IGNORED


def _is_image(name: str) -> bool:
    dot = name.rfind(".")
    return dot > 0 and name[dot:].lower() in SUFFIXES


def _read(root: Path, folder: str) -> _Folder:
    """Links to folders are left out, for they may lead in circles."""
    files, folders = [], []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            name = entry.name
            if not visible(name):
                continue
            if not entry.is_dir():
                files.append(name)
            elif not entry.is_symlink():
                folders.append(name)
    files.sort()
    others = tuple(name for name in files if not _is_image(name))
    return _Folder(Names(f"{folder}/{name}" for name in files if _is_image(name)), others, tuple(sorted(folders)))


def _all_below(root: Path, folders: Iterable[str], pool: Executor) -> dict[str, _Folder]:
    """Every folder below `folders`, which lie below `root`; those of one depth are read at once."""
    known: dict[str, _Folder] = {}
    level = list(folders)
    while level:
        known |= zip(level, pool.map(partial(_read, root), level), strict=True)
        level = [f"{folder}/{below}" for folder in level for below in known[folder].folders]
    return known


def _in_order(folder: str, known: dict[str, _Folder]) -> Iterator[str]:
    """A folder, then those in it."""
    yield folder
    for below in known[folder].folders:
        yield from _in_order(f"{folder}/{below}", known)


def _why_not(name: str) -> str:
    suffix = Path(name).suffix
    kind = f"{suffix} is no image format that is read" if suffix else "its name has no extension"
    return f"{kind} ({' '.join(SUFFIXES)})"


def image_files(root: Path, folders: Sequence[str]) -> list[Found]:
    """The image files below each of `folders`, which are named below `root`; known by their extensions.

    A folder's own files come before those of the folders in it, both sorted. Raises OSError.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        known = _all_below(root, folders, pool)
    found = []
    for folder in folders:
        inside = list(_in_order(folder, known))
        names = Names.join([known[where].images for where in inside])
        problems = [
            Problem(str(root / where / name), _why_not(name)) for where in inside for name in known[where].others
        ]
        found.append(Found(names, problems))
    return found
