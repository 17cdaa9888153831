"""The images in a WebDataset tar: by DALI's index beside it (wds2idx, versions 1.1 and 1.2), or by its own headers.

Files of one sample have one name up to the first dot: 000012.jpg and 000012.cls. `cls` holds the class, by name or by
number. A compressed tar has no places to read at, and is refused.
"""

import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from fastmpl.data.errors import DataError
from fastmpl.data.files.decode import SUFFIXES
from fastmpl.data.readers.shards import Entry, index_file

CLASS: Final = "cls"
_LONGEST_WORD: Final = 1024  # bytes of a class's name


class Member(NamedTuple):
    """A file in a tar; `extension` is all that follows the first dot of its name."""

    sample: str
    extension: str
    offset: int
    size: int


def _parts(name: str) -> tuple[str, str]:
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension


def _by_headers(path: Path) -> Iterator[Member]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg():
                    yield Member(*_parts(member.name), member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
    except tarfile.TarError as error:
        raise DataError(
            f"{path} is no whole, uncompressed tar file ({error}). Unpack it, or write it again."
        ) from error


def _by_index(path: Path, index: Path) -> Iterator[Member]:
    """Each line: extension, offset, size and (from version 1.2) name of every file of one sample."""
    lines = index.read_text("utf-8", "surrogateescape").splitlines()
    version = lines[0].split()[0] if lines and lines[0].split() else ""
    width = {"v1.1": 3, "v1.2": 4}.get(version)
    if width is None:
        raise ValueError("its version is not known")
    for number, line in enumerate(lines[1:]):
        words = line.split()
        if len(words) % width:
            raise ValueError(f"line {number + 2} is not {width} words for each file")
        for at in range(0, len(words), width):
            extension, offset, size = words[at], int(words[at + 1]), int(words[at + 2])
            sample = _parts(words[at + 3])[0] if width == 4 else f"{number:08d}"
            yield Member(sample, extension, offset, size)


def _members(path: Path) -> Iterable[Member]:
    """By the index where there is a usable one that reaches no further than the tar; else by its headers."""
    index = index_file(path)
    if index.exists():
        try:
            members = list(_by_index(path, index))
        except ValueError:  # of another tool, or names with spaces: the tar itself says the same
            return _by_headers(path)
        end = max((member.offset + member.size for member in members), default=0)
        if end > path.stat().st_size:
            raise DataError(f"{index} is not the index of {path}, which is shorter: remove it, or make it again.")
        return members
    return _by_headers(path)


def scan_tar(path: Path) -> list[Entry]:
    """The images of a tar, in its order. Raises DataError where it is damaged, OSError where it cannot be opened."""
    samples: dict[str, dict[str, Member]] = {}
    for member in _members(path):
        samples.setdefault(member.sample, {})[member.extension.lower()] = member
    entries = []
    with path.open("rb") as file:
        for name, files in samples.items():
            image = next((member for extension, member in files.items() if f".{extension}" in SUFFIXES), None)
            if image is None:
                continue
            said = files.get(CLASS)
            word = os.pread(file.fileno(), min(said.size, _LONGEST_WORD), said.offset) if said else b""
            entries.append(
                Entry(image.offset, image.size, f"{name}.{image.extension}", word.decode("utf-8", "replace").strip())
            )
    return entries
