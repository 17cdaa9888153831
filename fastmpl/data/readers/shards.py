"""The index of shards: what each reader of a shard returns, and one index of many shards, kept in the user's cache.

A shard is a file of many encoded images. Its index says of each image where its bytes are, its name, and the word for its
class. It is made from the shard itself, never from an index file of another tool beside it, which may be of another
version of the shard. `tar_index` and `tfrecord_index` read one shard each.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.encoded import Index, Names, Pieces
from fastmpl.data.inventory import Inventory, Problem, add_inventories, fold_problems
from fastmpl.data.readers.cache import cache_folder
from fastmpl.distributed.threads import cores
from fastmpl.untrusted import DAMAGED_ARRAY

VERSION: Final = 2  # of what an index holds


class Entry(NamedTuple):
    """One image of a shard: where its bytes are, its name, and the word for its class, empty where there is none.

    `numbered`: the word is an integer, the position of the class.
    """

    offset: int
    size: int
    name: str
    word: str
    numbered: bool = False


class ShardContent(NamedTuple):
    """The images of one shard in its order, what else is in it, and its account."""

    entries: list[Entry]
    problems: tuple[Problem, ...]
    inventory: Inventory


ReadShard = Callable[[Path], ShardContent]


class ShardFiles(NamedTuple):
    """Images of several shards in their order, with the word for the class of each and whether it is an integer."""

    images: Pieces
    words: Names
    numbered: NDArray[np.bool_]
    problems: tuple[Problem, ...]
    inventory: Inventory

    def name_image(self, position: int) -> str:
        """The shard of an image and its name in it."""
        return self.images.full_name(position)


class _Index(NamedTuple):
    """What the cache keeps: of each image its shard, offset, size and whether its word is an integer, int64 [N, 4]."""

    table: Index
    names: Names
    words: Names
    problems: tuple[Problem, ...]
    inventory: Inventory


def _key(root: Path, shards: Sequence[str]) -> str:
    """Changes with the shards' names, sizes and dates."""
    known = hashlib.blake2b(f"{VERSION} {root}".encode("utf-8", "surrogateescape"), digest_size=16)
    for shard in shards:
        facts = (root / shard).stat()
        known.update(f"\0{shard} {facts.st_size} {facts.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return known.hexdigest()


def _load_index(file: Path, shards: Sequence[str]) -> _Index | None:
    """The index that an earlier call saved; None where there is none, or a damaged one."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            names, words = (Names(json.loads(stored[key].tobytes())) for key in ("names", "words"))
            facts: dict[str, Any] = json.loads(stored["facts"].tobytes())
            problems = tuple(Problem(*problem) for problem in facts["problems"])
            index = _Index(stored["table"].astype(np.int64), names, words, problems, Inventory(*facts["inventory"]))
    except (OSError, *DAMAGED_ARRAY):
        return None
    return index if _is_sound(index, len(shards)) else None


def _is_sound(index: _Index, shards: int) -> bool:
    """Whether an index can be one of so many shards."""
    if (
        index.table.ndim != 2
        or index.table.shape[1] != 4
        or not len(index.table) == len(index.names) == len(index.words)
    ):
        return False
    texts = all(isinstance(p.file, str) and isinstance(p.reason, str) for p in index.problems)
    counts = all(isinstance(count, int) for count in index.inventory)
    inside = not len(index.table) or bool((index.table >= 0).all() and (index.table[:, 0] < shards).all())
    return texts and counts and inside


def _save_index(file: Path, index: _Index) -> None:
    """Saves the index in one move. A full disk is no error: an index can be made again."""
    draft = file.with_name(f"{file.stem}.{os.getpid()}.tmp.npz")
    facts = {"problems": index.problems, "inventory": index.inventory}
    texts = {"names": list(index.names), "words": list(index.words), "facts": facts}
    try:
        arrays = {key: np.frombuffer(json.dumps(text).encode(), np.uint8) for key, text in texts.items()}
        np.savez(draft, table=index.table, **arrays)  # type: ignore[arg-type]  # of numpy's stub for keywords
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)


def _name_file_in_errors(read: ReadShard) -> ReadShard:
    def read_named(path: Path) -> ShardContent:
        try:
            return read(path)
        except OSError as error:
            raise DataError(f"{printable(path)} cannot be read: {error.strerror or error}.") from error

    return read_named


def _read_all(root: Path, shards: Sequence[str], read: ReadShard) -> _Index:
    with ThreadPoolExecutor(cores()) as pool:
        contents = list(pool.map(_name_file_in_errors(read), [root / shard for shard in shards]))
    rows = [(s, e.offset, e.size, e.numbered) for s, content in enumerate(contents) for e in content.entries]
    return _Index(
        np.array(rows, dtype=np.int64).reshape(-1, 4),
        Names(entry.name for content in contents for entry in content.entries),
        Names(entry.word for content in contents for entry in content.entries),
        fold_problems(problem for content in contents for problem in content.problems),
        add_inventories(content.inventory for content in contents),
    )


def index_shards(root: Path, shards: Sequence[str], read: ReadShard) -> ShardFiles:
    """The images of `shards`, which are named below `root`. Raises DataError where one cannot be read."""
    cache, index = cache_folder(), None
    file = cache / f"index-{_key(root, shards)}.npz" if cache and shards else None
    if file is not None:
        index = _load_index(file, shards)
    if index is None:
        index = _read_all(root, shards, read)
        if file is not None:
            _save_index(file, index)
    shard, offset, size, numbered = index.table.T
    images = Pieces(root, shards, shard.astype(np.int32), offset.copy(), size.copy(), index.names)
    return ShardFiles(images, index.words, numbered.astype(bool), index.problems, index.inventory)


def join_shards(parts: Sequence[ShardFiles]) -> Pieces:
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
