"""The cache of decoded images: a file that is written once and mapped into memory by every later run and every rank.

The user's cache holds one folder for each folder of images and image size. It is written again when the name, the size
or the date of a file has changed. A mapped file takes only the memory that is free, so a large set of images still runs.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.errors import printable
from fastmpl.data.files.decode import Decoded, decode_all
from fastmpl.data.inventory import Problem
from fastmpl.errors import StorageError
from fastmpl.untrusted import read_json_object

VERSION: Final = 2  # of the decoding rule and of the layout; a new number makes every cache anew
MANY: Final = 2_000  # images; decoding more of them takes long enough to be announced
PIXELS, FACTS = "images.bin", "facts.json"


class DecodedImages(NamedTuple):
    """Images uint8 [K, size, size, 3], and `kept` int64 [K]: the position of each in the list of files asked for."""

    images: NDArray[np.uint8]
    kept: NDArray[np.int64]
    problems: tuple[Problem, ...]


def cache_folder() -> Path | None:
    """The folder of caches: $XDG_CACHE_HOME/fastmpl, or ~/.cache/fastmpl; None where neither can be written."""
    home = os.path.expanduser("~")  # left as it is for a user without one
    if not (os.environ.get("XDG_CACHE_HOME") or os.path.isabs(home)):
        return None
    folder = Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache") / "fastmpl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _key(root: Path, files: Sequence[str], form: str) -> str:
    """A hash of the names, sizes and dates of the files. Their bytes are not hashed: reading them is what a cache saves."""
    digest = hashlib.blake2b(f"{VERSION} {form}".encode(), digest_size=16)
    for path in files:
        try:
            facts = (root / path).stat()
            digest.update(f"\0{facts.st_size} {facts.st_mtime_ns} ".encode())
        except OSError:
            digest.update(b"\0gone ")
        digest.update(os.fsencode(path))
    return digest.hexdigest()


def _collect(
    files: Sequence[str], decoded: Iterator[Decoded], write: Callable[[bytes], object]
) -> tuple[list[int], list[Problem]]:
    """Passes the pixels of every image to `write`, in order. Returns the positions of their files, and the problems."""
    kept: list[int] = []
    problems: list[Problem] = []
    for number, (path, found) in enumerate(zip(files, decoded, strict=True)):
        if found.remark:
            problems.append(Problem(path, found.remark, used=found.pixels is not None))
        if found.pixels is not None:
            write(found.pixels.tobytes())
            kept.append(number)
    return kept, problems


def _check_kept(kept: Any, count: int) -> NDArray[np.int64]:
    """The positions of images in a list of `count` files. Raises ValueError for anything else."""
    if not isinstance(kept, list) or not all(type(place) is int and 0 <= place < count for place in kept):
        raise ValueError("positions of files that there are not")
    return np.array(kept, dtype=np.int64)


def _read_problem(file: str, reason: str, used: bool, count: int) -> Problem:
    """A problem in the facts of a cache. Raises ValueError for anything else."""
    if not isinstance(file, str) or not isinstance(reason, str) or type(count) is not int:
        raise ValueError("a problem without a file, a reason or a number")
    return Problem(file, reason, bool(used), count)


def _open_cached(folder: Path, key: str, size: int, count: int) -> DecodedImages | None:
    """The cache in `folder`; None where it is incomplete or was made of other files."""
    try:
        facts = read_json_object(folder / FACTS)
        kept = _check_kept(facts["kept"], count)
        if facts["key"] != key or (folder / PIXELS).stat().st_size != len(kept) * size * size * 3:
            return None
        problems = tuple(_read_problem(*problem) for problem in facts["problems"])
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
        return None
    shape = (len(kept), size, size, 3)
    if not len(kept):
        return DecodedImages(np.zeros(shape, np.uint8), kept, problems)
    # mapped copy-on-write, because torch takes no read-only array; nothing writes to it
    return DecodedImages(np.asarray(np.memmap(folder / PIXELS, np.uint8, "c", shape=shape)), kept, problems)


def _write_cache(folder: Path, key: str, root: Path, files: Sequence[str], size: int, interpolation: str) -> None:
    """Decodes `files` into a draft folder, and renames it to `folder` when it is complete."""
    draft = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    needed, free = len(files) * size * size * 3, shutil.disk_usage(folder.parent).free
    if needed > free:
        raise StorageError(
            f"{len(files)} images of {size} x {size} pixels need {needed / 1e9:.1f} GB in {folder.parent}, which has "
            f"{free / 1e9:.1f} free. Set XDG_CACHE_HOME to a larger disk, or a smaller data.image_size."
        )
    if len(files) >= MANY:
        print(f"Decoding {len(files)} images once, into {folder} ({needed / 1e9:.1f} GB) ...", file=sys.stderr)
    try:
        draft.mkdir()
        with (draft / PIXELS).open("wb") as file:
            decoded = decode_all((root / path for path in files), size, interpolation)
            kept, problems = _collect(files, decoded, file.write)
            file.flush()
            os.fsync(file.fileno())
        (draft / FACTS).write_text(json.dumps({"key": key, "kept": kept, "problems": problems}))
        shutil.rmtree(folder, ignore_errors=True)  # the outdated cache; a process that has it mapped keeps its copy
        draft.rename(folder)
    except OSError as error:
        raise StorageError(
            f"{draft} cannot be written: {error.strerror}. Set XDG_CACHE_HOME to another disk."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the lock of one cache: of several ranks the first decodes, and the others wait."""
    with folder.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _decode_to_memory(root: Path, files: Sequence[str], size: int, interpolation: str) -> DecodedImages:
    rows = bytearray()
    decoded = decode_all((root / path for path in files), size, interpolation)
    kept, problems = _collect(files, decoded, rows.extend)
    images = np.frombuffer(rows, np.uint8).reshape(-1, size, size, 3)
    return DecodedImages(images, np.array(kept, dtype=np.int64), tuple(problems))


def _load_or_write(cache: Path, root: Path, files: Sequence[str], size: int, interpolation: str) -> DecodedImages:
    form = f"{size}" if interpolation == "bilinear" else f"{size}-{interpolation}"
    place = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=6).hexdigest()
    name = "".join(letter for letter in printable(root.resolve().name) if letter.isascii() and letter.isalnum())
    folder, key = cache / f"{name[:32] or 'images'}-{place}-{form}", _key(root, files, form)
    with _lock(folder):
        found = _open_cached(folder, key, size, len(files))
        if found is None:
            _write_cache(folder, key, root, files, size, interpolation)
            found = _open_cached(folder, key, size, len(files))
    if found is None:
        raise StorageError(f"{folder} was changed by another program while it was written: start again.")
    return found


def load_decoded(root: Path, files: Sequence[str], size: int, interpolation: str = "bilinear") -> DecodedImages:
    """Loads the images of `files` (paths below `root`) as squares of `size` pixels, from the cache or into it.

    Where no cache can be written (a read-only home), the images stay in memory. Raises StorageError where the disk is
    too small.
    """
    cache = cache_folder()
    found = (
        _load_or_write(cache, root, files, size, interpolation)
        if cache
        else _decode_to_memory(root, files, size, interpolation)
    )
    named = tuple(problem._replace(file=str(root / problem.file)) for problem in found.problems)
    return found._replace(problems=named)
