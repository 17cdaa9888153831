"""Encoded images: the bytes of image i, from a file of its own or from inside a shard. Nothing is decoded here.

Every storage is read by random access. The order of images is therefore decided by `sampler` alone; a storage has no
position and no shuffle of its own. A million images are a million rows of numbers and one string, not a million objects.
"""

import hashlib
import os
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from fastmpl.untrusted import open_regular

Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]
_OF_FILES: Final = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
OPEN_FILES: Final = 256  # shards that each process keeps open for each set of images


class Names(Sequence[str]):
    """Many names in one string: 1.28 million paths take 60 MB, not 200. Bytes that are no text are kept."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        text, ends = bytearray(), array("q")  # a list of a million parts would take what this class saves
        for name in names:
            text += name.encode(*_OF_FILES)
            ends.append(len(text))
        self._bytes = text
        self._ends = np.frombuffer(ends, np.int64) if ends else np.empty(0, np.int64)

    @classmethod
    def join(cls, parts: Sequence["Names"]) -> "Names":
        """The names of all `parts`, one after another."""
        if len(parts) == 1:
            return parts[0]
        names = cls()
        names._bytes = bytearray().join(part._bytes for part in parts)
        starts = np.cumsum([0, *(len(part._bytes) for part in parts)])
        names._ends = np.concatenate([names._ends, *(part._ends + at for part, at in zip(parts, starts, strict=False))])
        return names

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # counts from the end, and raises IndexError
        start = int(self._ends[place - 1]) if place else 0
        return os.fsdecode(bytes(self._bytes[start : int(self._ends[place])]))

    @property
    def digest(self) -> str:
        """A hash of the names in this order, sixteen hexadecimal digits."""
        known = hashlib.blake2b(self._bytes, digest_size=8)
        known.update(self._ends.tobytes())
        return known.hexdigest()


class Encoded(Protocol):
    """N encoded images, numbered from 0."""

    @property
    def names(self) -> Sequence[str]:
        """The name by which a user knows each image."""
        ...

    @property
    def digest(self) -> str:
        """A hash of names and sizes in this order, not of the bytes of the images."""
        ...

    def __len__(self) -> int: ...

    def full_name(self, index: int) -> str:
        """The name of image `index`, with that of its shard."""
        ...

    def read(self, index: int) -> Bytes:
        """Reads the bytes of image `index`. Raises OSError where they cannot be read."""
        ...


@dataclass(frozen=True)
class Files:
    """Image i is the file `root`/`names[i]`."""

    root: Path
    names: Names

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        return self.names.digest

    def full_name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> Bytes:
        with open(os.path.join(self.root, self.names[index]), "rb", opener=open_regular) as file:
            return np.fromfile(file, np.uint8)


class Pieces:
    """Image i is `size[i]` bytes at `offset[i]` of the file `root`/`shards[shard[i]]`."""

    def __init__(
        self, root: Path, shards: Sequence[str], shard: NDArray[np.int32], offset: Index, size: Index, names: Names
    ) -> None:
        self.root, self.shards, self.names = root, tuple(shards), names
        self.shard, self.offset, self.size = shard, offset, size
        self._open: dict[int, _OpenFile] = {}  # by shard, the oldest first

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def digest(self) -> str:
        known = hashlib.blake2b(self.names.digest.encode(), digest_size=8)
        known.update("\0".join(self.shards).encode("utf-8", "surrogateescape"))
        for column in (self.shard, self.offset, self.size):
            known.update(np.ascontiguousarray(column).data)
        return known.hexdigest()

    def full_name(self, index: int) -> str:
        """The shard of image `index` and its name in it."""
        return f"{self.shards[self.shard[index]]}: {self.names[index]}"

    def read(self, index: int) -> Bytes:
        count, offset = int(self.size[index]), int(self.offset[index])
        file = self._file(int(self.shard[index]))
        content = os.pread(file.number, count, offset)
        if len(content) != count:
            raise OSError(f"{self.shards[self.shard[index]]} ends within {self.names[index]}")
        return np.frombuffer(content, np.uint8)

    def _file(self, shard: int) -> "_OpenFile":
        file = self._open.get(shard)
        if file is None:
            file = self._open[shard] = _OpenFile(os.path.join(self.root, self.shards[shard]))
            if len(self._open) > OPEN_FILES:
                self._open.pop(next(iter(self._open)), None)  # closed when the last thread has read from it
        return file


class _OpenFile:
    """A file that several threads read from; it is closed with the last reference to it."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = open_regular(path)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class Subset:
    """The images `index` of another set, numbered anew from 0."""

    def __init__(self, images: Encoded, index: Index) -> None:
        self._images, self._index = images, index

    def __len__(self) -> int:
        return len(self._index)

    @property
    def names(self) -> Sequence[str]:
        names = self._images.names
        return Names(names[i] for i in self._index)

    @property
    def digest(self) -> str:
        return hashlib.blake2b(self._images.digest.encode() + self._index.tobytes(), digest_size=8).hexdigest()

    def full_name(self, index: int) -> str:
        return self._images.full_name(int(self._index[index]))

    def read(self, index: int) -> Bytes:
        return self._images.read(int(self._index[index]))
