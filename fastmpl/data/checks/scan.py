"""Reads and decodes every image of a data set once, on all cores, to find those that cannot be used.

The work is done by processes, not threads: a decoder that crashes ends its process, and the image is then listed as bad
like any other. The pixels of each image are hashed too, so that copies of one image are found in whatever file they are.
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

CHUNK: Final = 64  # images of one message to a worker process
CRASHED: Final = "its decoder crashed"
OnProgress = Callable[[int], None]


class Verdict(NamedTuple):
    """`remark`: what is odd about an image, or why it is bad. `digest`: a hash of its pixels, 0 for a bad image."""

    remark: str
    digest: int


class Scan(NamedTuple):
    """Reasons of bad images and remarks on odd ones, by image number, and `digests` uint64 [N] of the pixels.

    Equal digests mean equal pixels, except for 0, the digest of a bad image.
    """

    bad: dict[int, str]
    odd: dict[int, str]
    digests: NDArray[np.uint64]


def judge_image(images: Encoded, index: int) -> Verdict:
    """Reads and decodes one image. No content of the image raises an error."""
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


def _start_worker(images: Encoded) -> None:
    global _images
    _images = images


def _judge_chunk(chunk: range) -> list[Verdict]:
    return [judge_image(_images, index) for index in chunk]


def _pool(images: Encoded, processes: int) -> Executor:
    """Spawned processes: a forked one would inherit locks of threads that it does not have."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(images,))


def _judge_one_by_one(images: Encoded, chunk: range) -> Iterator[Verdict]:
    """The verdicts on a chunk with an image that crashes its process; a new process follows each crash."""
    left = list(chunk)
    while left:
        with _pool(images, 1) as pool:
            try:
                while left:
                    yield from pool.submit(_judge_chunk, range(left[0], left[0] + 1)).result()
                    left.pop(0)
            except BrokenProcessPool:
                yield Verdict(CRASHED, 0)
                left.pop(0)


def _judge_chunks(images: Encoded, chunks: list[range], processes: int) -> Iterator[list[Verdict]]:
    """The verdicts on each chunk, in order, even where a worker process crashes."""
    done = 0
    while done < len(chunks):
        with _pool(images, processes) as pool:
            try:
                for found in pool.map(_judge_chunk, chunks[done:]):
                    yield found
                    done += 1
            except BrokenProcessPool:  # crashed by this chunk or by a later one, which is retried in its turn
                yield list(_judge_one_by_one(images, chunks[done]))
                done += 1


def scan(images: Encoded, *, processes: int = 0, on_progress: OnProgress | None = None) -> Scan:
    """Reads and decodes all `images`, by `processes` (0: one a core). `on_progress` gets the number of images done."""
    count = len(images)
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    bad: dict[int, str] = {}
    odd: dict[int, str] = {}
    digests = np.zeros(count, np.uint64)
    for chunk, found in zip(chunks, _judge_chunks(images, chunks, processes or cores()), strict=True):
        for index, (remark, digest) in zip(chunk, found, strict=True):
            digests[index] = digest
            if remark:
                (odd if digest else bad)[index] = remark
        if on_progress is not None:
            on_progress(chunk.stop)
    return Scan(bad, odd, digests)
