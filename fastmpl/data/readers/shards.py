"""What every index of a shard says, and the index of many shards: made once and kept in the user's cache.

A shard is a file of many encoded images. Its index gives of each image where its bytes are, what it is called and what
the shard says of its class; tar_index and tfrecord_index make one each.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from fastmpl.data.errors import DataError
from fastmpl.data.files.encoded import Index, Names, Pieces
from fastmpl.data.readers.cache import cache_folder
from fastmpl.distributed.threads import cores

VERSION: Final = 1  # of what an index holds


class Entry(NamedTuple):
    """One image of a shard: where its bytes are, its name, and the word for its class, empty where there is none."""

    offset: int
    size: int
    name: str
    word: str


ReadShard = Callable[[Path], list[Entry]]


class Shards(NamedTuple):
    """Images of several shards, in their order, with the word for the class of each."""

    images: Pieces
    words: Names


def _key(root: Path, shards: Sequence[str]) -> str:
    """Changes with the shards' names, sizes and dates, and with those of the indices beside them."""
    known = hashlib.blake2b(f"{VERSION} {root}".encode("utf-8", "surrogateescape"), digest_size=16)
    for shard in shards:
        for path in (root / shard, index_file(root / shard)):
            if path.exists():
                facts = path.stat()
                known.update(f"\0{path.name} {facts.st_size} {facts.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return known.hexdigest()


def index_file(shard: Path) -> Path:
    """Where DALI's tools put the index of a shard: beside it, .idx in the place of its extension or after it."""
    beside = shard.with_suffix(".idx")
    return beside if beside.exists() else shard.with_name(f"{shard.name}.idx")


def _load_index(file: Path) -> tuple[Index, Names, Names] | None:
    """What an earlier call stored; None where there is nothing, or not what was stored."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            names, words = (Names(json.loads(stored[key].tobytes())) for key in ("names", "words"))
            return np.asarray(stored["places"], dtype=np.int64), names, words
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _save_index(file: Path, places: Index, names: Names, words: Names) -> None:
    """In one move, and without complaint where the disk is full: an index can be made again."""
    draft = file.with_name(f"{file.stem}.{os.getpid()}.tmp.npz")
    try:
        texts = (np.frombuffer(json.dumps(list(text)).encode(), np.uint8) for text in (names, words))
        np.savez(draft, places=places, names=next(texts), words=next(texts))
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)


def index_shards(root: Path, shards: Sequence[str], scan: ReadShard) -> Shards:
    """The images of `shards`, which are named below `root`. Raises DataError where one cannot be read."""
    cache, found = cache_folder(), None
    file = cache / f"index-{_key(root, shards)}.npz" if cache and shards else None
    if file is not None:
        found = _load_index(file)
    if found is None:
        with ThreadPoolExecutor(cores()) as pool:
            scanned = list(pool.map(_name_file_in_errors(scan), [root / shard for shard in shards]))
        rows = [(s, entry.offset, entry.size) for s, entries in enumerate(scanned) for entry in entries]
        places = np.array(rows, dtype=np.int64).reshape(-1, 3)
        names = Names(entry.name for entries in scanned for entry in entries)
        words = Names(entry.word for entries in scanned for entry in entries)
        found = places, names, words
        if file is not None:
            _save_index(file, *found)
    places, names, words = found
    images = Pieces(root, shards, places[:, 0].astype(np.int32), places[:, 1].copy(), places[:, 2].copy(), names)
    return Shards(images, words)


def _name_file_in_errors(scan: ReadShard) -> ReadShard:
    def scanned(path: Path) -> list[Entry]:
        try:
            return scan(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error

    return scanned


def join_shards(parts: Sequence[Shards]) -> Pieces:
    """The images of several, one after another."""
    pieces = [part.images for part in parts]
    shards = [shard for part in pieces for shard in part.shards]
    first = np.cumsum([0, *(len(part.shards) for part in pieces)])
    return Pieces(
        pieces[0].root,
        shards,
        np.concatenate([part.shard + at for part, at in zip(pieces, first, strict=False)]).astype(np.int32),
        np.concatenate([part.offset for part in pieces]),
        np.concatenate([part.size for part in pieces]),
        Names.join([part.names for part in pieces]),
    )
