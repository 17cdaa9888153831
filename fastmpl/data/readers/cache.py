"""Decoded images in a file, made once and mapped into memory: by every later run, and by all ranks of one.

One folder of the user's cache for each image folder and size; it is made again when a file's name, size or date has
changed. An operating system keeps of a mapped file what is in use and what fits, so thousands of images cost their
decoding once, and hundreds of thousands no more memory than there is.
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
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.dataset import Problem
from fastmpl.data.errors import shown
from fastmpl.data.files.decode import Decoded, decode_all
from fastmpl.errors import StorageError

VERSION: Final = 1  # of how images are decoded and stored
MANY: Final = 2_000  # images whose decoding takes long enough to be announced
PIXELS, FACTS = "images.bin", "facts.json"


class Pictures(NamedTuple):
    """`images` uint8 [len(kept), size, size, 3] are files number `kept` of those asked for."""

    images: NDArray[np.uint8]
    kept: NDArray[np.int64]
    problems: tuple[Problem, ...]


def cache_folder() -> Path | None:
    """Where decoded images are kept: $XDG_CACHE_HOME/fastmpl, or ~/.cache/fastmpl; None where neither can be written."""
    home = os.path.expanduser("~")  # left as it is for a user without one
    if not (os.environ.get("XDG_CACHE_HOME") or os.path.isabs(home)):
        return None
    folder = Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache") / "fastmpl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _key(root: Path, files: Sequence[str], size: int) -> str:
    """Changes with the files' names, sizes and dates. Their bytes are not read: that would cost what a cache saves."""
    digest = hashlib.blake2b(f"{VERSION} {size}".encode(), digest_size=16)
    for path in files:
        try:
            facts = (root / path).stat()
            digest.update(f"\0{facts.st_size} {facts.st_mtime_ns} ".encode())
        except OSError:
            digest.update(b"\0gone ")
        digest.update(os.fsencode(path))
    return digest.hexdigest()


def _collected(
    files: Sequence[str], decoded: Iterator[Decoded], write: Callable[[bytes], object]
) -> tuple[list[int], list[Problem]]:
    """Passes every image's bytes to `write`, in order; which files they are of, and what is wrong with others."""
    kept: list[int] = []
    problems: list[Problem] = []
    for number, (path, found) in enumerate(zip(files, decoded, strict=True)):
        if found.remark:
            problems.append(Problem(path, found.remark, used=found.pixels is not None))
        if found.pixels is not None:
            write(found.pixels.tobytes())
            kept.append(number)
    return kept, problems


def _opened(folder: Path, key: str, size: int) -> Pictures | None:
    """What `folder` holds, if it is whole and of these files."""
    try:
        facts = json.loads((folder / FACTS).read_text())
        kept = np.array(facts["kept"], dtype=np.int64)
        if facts["key"] != key or (folder / PIXELS).stat().st_size != len(kept) * size * size * 3:
            return None
        problems = tuple(Problem(*problem) for problem in facts["problems"])
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not ours
        return None
    shape = (len(kept), size, size, 3)
    if not len(kept):
        return Pictures(np.zeros(shape, np.uint8), kept, problems)
    # copy on write: torch takes no read-only array, and nobody writes
    return Pictures(np.asarray(np.memmap(folder / PIXELS, np.uint8, "c", shape=shape)), kept, problems)


def _make(folder: Path, key: str, root: Path, files: Sequence[str], size: int) -> None:
    """Decodes `files` into `folder`, which appears when it is whole."""
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
            kept, problems = _collected(files, decode_all((root / path for path in files), size), file.write)
            file.flush()
            os.fsync(file.fileno())
        (draft / FACTS).write_text(json.dumps({"key": key, "kept": kept, "problems": problems}))
        shutil.rmtree(folder, ignore_errors=True)  # of files as they were; who has it mapped keeps it
        draft.rename(folder)
    except OSError as error:
        raise StorageError(
            f"{draft} cannot be written: {error.strerror}. Set XDG_CACHE_HOME to another disk."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of several ranks, the first decodes and the others wait for it."""
    with folder.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _in_memory(root: Path, files: Sequence[str], size: int) -> Pictures:
    rows = bytearray()
    kept, problems = _collected(files, decode_all((root / path for path in files), size), rows.extend)
    images = np.frombuffer(rows, np.uint8).reshape(-1, size, size, 3)
    return Pictures(images, np.array(kept, dtype=np.int64), tuple(problems))


def _cached(cache: Path, root: Path, files: Sequence[str], size: int) -> Pictures:
    place = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=6).hexdigest()
    name = "".join(letter for letter in shown(root.resolve().name) if letter.isascii() and letter.isalnum())
    folder, key = cache / f"{name[:32] or 'images'}-{place}-{size}", _key(root, files, size)
    with _alone(folder):
        found = _opened(folder, key, size)
        if found is None:
            _make(folder, key, root, files, size)
            found = _opened(folder, key, size)
    if found is None:
        raise StorageError(f"{folder} was altered while it was made: call again.")
    return found


def decoded(root: Path, files: Sequence[str], size: int) -> Pictures:
    """The images of `files`, paths below `root`, `size` pixels square; from the cache, or into it.

    Where no cache can be written (a read-only home) they are held in memory. Raises StorageError where the disk is
    too small.
    """
    cache = cache_folder()
    found = _cached(cache, root, files, size) if cache else _in_memory(root, files, size)
    named = tuple(problem._replace(file=str(root / problem.file)) for problem in found.problems)
    return found._replace(problems=named)
