"""Every image of a data set read and decoded once, by all cores, to find out which cannot be used.

Processes and not threads: a decoder that crashes on some bytes takes its process with it, and that image is then listed
like any other. Beside the verdict on each image its pixels are hashed, so that copies of one picture can be found
whatever file each is in.
"""

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.files.decode import decode_whole, reason_of
from fastmpl.data.files.encoded import Encoded
from fastmpl.distributed.threads import cores

CHUNK: Final = 64  # images a message
CRASHED: Final = "its decoder crashed"
Tell = Callable[[int], None]


class Verdict(NamedTuple):
    """What is odd about an image, or why it cannot be used; and a hash of its pixels, 0 where there are none."""

    remark: str
    digest: int


class Scan(NamedTuple):
    """What was found: why images cannot be used and what is odd about others, by image, and `digests` uint64 [N].

    Equal digests are equal pictures, but for 0, which an image without a picture has.
    """

    bad: dict[int, str]
    odd: dict[int, str]
    digests: NDArray[np.uint64]


def verdict(images: Encoded, index: int) -> Verdict:
    """Reads and decodes one image. Raises nothing that the image could cause."""
    try:
        content = images.read(index)
    except OSError as error:
        return Verdict(reason_of(error), 0)
    if not content.size:
        return Verdict("the file is empty", 0)
    image, remark = decode_whole(content.tobytes(), os.path.splitext(images.names[index])[1])
    if image is None:
        return Verdict(remark, 0)
    known = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=8)
    known.update(image.tobytes())
    return Verdict(remark, int.from_bytes(known.digest()) or 1)


_images: Encoded  # of a worker process


def _begin(images: Encoded) -> None:
    global _images
    _images = images


def _verdicts(chunk: range) -> list[Verdict]:
    return [verdict(_images, index) for index in chunk]


def _pool(images: Encoded, processes: int) -> Executor:
    """Fresh processes: a fork would take along threads that it cannot have."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(images,))


def _one_by_one(images: Encoded, chunk: range) -> Iterator[Verdict]:
    """The verdicts on a chunk of which some image ends its process: a new process after each that did."""
    left = list(chunk)
    while left:
        with _pool(images, 1) as pool:
            try:
                while left:
                    yield from pool.submit(_verdicts, range(left[0], left[0] + 1)).result()
                    left.pop(0)
            except BrokenProcessPool:
                yield Verdict(CRASHED, 0)
                left.pop(0)


def _in_chunks(images: Encoded, chunks: list[range], processes: int) -> Iterator[list[Verdict]]:
    """The verdicts on each chunk in order, whatever becomes of a process."""
    done = 0
    while done < len(chunks):
        with _pool(images, processes) as pool:
            try:
                for found in pool.map(_verdicts, chunks[done:]):
                    yield found
                    done += 1
            except BrokenProcessPool:  # by this chunk or one after it, which will have its turn
                yield list(_one_by_one(images, chunks[done]))
                done += 1


def scan(images: Encoded, *, processes: int = 0, tell: Tell | None = None) -> Scan:
    """Reads and decodes all `images`; processes: 0: as many as cores. tell: called with how many are done."""
    count = len(images)
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    bad: dict[int, str] = {}
    odd: dict[int, str] = {}
    digests = np.zeros(count, np.uint64)
    for chunk, found in zip(chunks, _in_chunks(images, chunks, processes or cores()), strict=True):
        for index, (remark, digest) in zip(chunk, found, strict=True):
            digests[index] = digest
            if remark:
                (odd if digest else bad)[index] = remark
        if tell is not None:
            tell(chunk.stop)
    return Scan(bad, odd, digests)
