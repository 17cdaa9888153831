"""Lists the image files below a folder, in an order that no file system decides, with an account of all other entries.

Links to files and to folders are followed. A folder is listed once, under its own place rather than under a link, so
links in circles end. Folders are read by several threads, because on a network disk each is a wait. No file is opened,
nor asked for its size: a million files would cost a million questions.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from fastmpl.data.files.decode import SUFFIXES
from fastmpl.data.files.encoded import Names
from fastmpl.data.inventory import Problem, fold_problems
from fastmpl.untrusted import NO_FILE

THREADS: Final = 16  # they wait for a disk, not for a core
_ENDS: Final = tuple(SUFFIXES)
_WINDOWS: Final = ("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information")
_OTHERS: Final = ("icon\r", "__macosx", "lost+found", "@eadir", "@recycle", "#recycle", "#snapshot")  # macOS, drives
_SYSTEM: Final = frozenset((*_WINDOWS, *_OTHERS))
NO_TARGET: Final = "the file is gone, or a link to nothing"
LISTED_ALREADY: Final = "it is a link to a folder that is listed elsewhere, or to one above"


class FoundFiles(NamedTuple):
    """Image files below a folder, by their paths below the root; the other entries; the number of all entries."""

    names: Names
    problems: tuple[Problem, ...]
    entries: int


class _Folder(NamedTuple):
    """What lies directly in one folder, sorted."""

    identity: tuple[int, int]  # the same for every link to it
    images: Names  # by their paths below the root
    left_out: tuple[tuple[str, str], ...]  # names and reasons
    folders: tuple[str, ...]
    links: frozenset[str]  # those of `folders` that are links
    entries: int  # files, and folders that are left out


def why_hidden(name: str) -> str:
    """Why an entry of this name is not the user's own; empty where it is."""
    if name.lower() in _SYSTEM:
        return "it was made by an operating system or a network drive"
    if not name.startswith("."):
        return ""
    if name.startswith("._"):
        return "its name begins with ._ (macOS keeps attributes there)"
    return "its name begins with a dot"


def why_no_image(name: str) -> str:
    """Why a file of this name is not read as an image; empty where it is."""
    suffix = os.path.splitext(name)[1]
    if suffix.lower() in SUFFIXES:
        return ""
    kind = f"{suffix} is no image format that is read" if suffix else "its name has no extension"
    return f"{kind} ({' '.join(SUFFIXES)})"


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def why_no_file(entry: "os.DirEntry[str]") -> str:
    """Why an entry that is no folder must not be opened; empty for a regular file and for a link to one."""
    try:
        if entry.is_file():
            return ""
        return NO_FILE if os.path.exists(entry.path) else NO_TARGET
    except OSError:
        return NO_TARGET


def _is_plain_image(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a regular file, not a link, with the name of an image, as nearly all entries are."""
    name = entry.name
    try:
        return name.lower().endswith(_ENDS) and not name.startswith(".") and entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def _read_folder(root: Path, folder: str) -> _Folder:
    files, left_out, folders, links, entries = [], [], [], set(), 0
    with os.scandir(root / folder) as found:
        for entry in found:
            name, entries = entry.name, entries + 1
            if _is_plain_image(entry):
                files.append(name)
            elif reason := why_hidden(name):
                left_out.append((name, reason))
            elif is_folder(entry):
                folders.append(name)
                if entry.is_symlink():
                    links.add(name)
            elif (
                reason := why_no_image(name) or why_no_file(entry)
            ) and reason != NO_TARGET:  # a decoder tells that one
                left_out.append((name, reason))
            else:
                files.append(name)
    images = Names(f"{folder}/{name}" for name in sorted(files))
    entries -= len(folders)
    return _Folder(
        _identity(root / folder), images, tuple(sorted(left_out)), tuple(sorted(folders)), frozenset(links), entries
    )


def _leave_out(folder: _Folder) -> _Folder:
    """The second way to a folder: one entry, and nothing in it."""
    return folder._replace(images=Names(), left_out=(("", LISTED_ALREADY),), folders=(), entries=1)


def _identity(folder: Path) -> tuple[int, int]:
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino


def _identities_above(root: Path, folders: Iterable[str]) -> set[tuple[int, int]]:
    """Of the folders that `folders` lie in: a link to one of them would lead in a circle."""
    above = [*root.resolve().parents, *(root / parent for folder in folders for parent in Path(folder).parents)]
    return {_identity(folder) for folder in dict.fromkeys(above)}


def _read_all(root: Path, folders: Sequence[str], pool: Executor) -> dict[str, _Folder]:
    """Every folder below `folders`, which lie below `root`. Those of one depth are read at once; links come last."""
    known: dict[str, _Folder] = {}
    seen = _identities_above(root, folders)
    level = [folder for folder in folders if not (root / folder).is_symlink()]
    links = [folder for folder in folders if (root / folder).is_symlink()]
    while level or links:
        if not level:
            level, links = links, []
        below = []
        for folder, found in zip(level, pool.map(partial(_read_folder, root), level), strict=True):
            known[folder] = _leave_out(found) if found.identity in seen else found
            seen.add(found.identity)
            paths = {name: f"{folder}/{name}" for name in known[folder].folders}
            below += [path for name, path in paths.items() if name not in found.links]
            links += [path for name, path in paths.items() if name in found.links]
        level = below
    return known


def _in_order(folder: str, known: dict[str, _Folder]) -> Iterator[str]:
    """A folder, then those in it."""
    yield folder
    for below in known[folder].folders:
        yield from _in_order(f"{folder}/{below}", known)


def _problems(root: Path, folder: str, found: _Folder) -> Iterator[Problem]:
    for name, reason in found.left_out:
        yield Problem(str(root / folder / name), reason)


def list_image_files(root: Path, folders: Sequence[str]) -> list[FoundFiles]:
    """The image files below each of `folders`, which are named below `root`; known by their extensions.

    A folder's own files come before those of the folders in it, both sorted. Raises OSError.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        known = _read_all(root, folders, pool)
    found = []
    for folder in folders:
        inside = list(_in_order(folder, known))
        names = Names.join([known[where].images for where in inside])
        problems = fold_problems(problem for where in inside for problem in _problems(root, where, known[where]))
        found.append(FoundFiles(names, problems, sum(known[where].entries for where in inside)))
    return found
