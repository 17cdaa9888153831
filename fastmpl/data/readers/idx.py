"""Reads an IDX file, the format of MNIST and Fashion-MNIST: unsigned bytes only, plain or gzip.

Layout: two zero bytes, the element type (8: unsigned byte), the number of dimensions, each dimension as a big-endian
32-bit integer, the elements in row-major order.
"""

import gzip
import zlib
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.errors import DataError

_LARGEST = 1 << 32  # bytes; a header that promises more is damaged


def _parse(stream: BinaryIO, path: Path) -> NDArray[np.uint8]:
    head = stream.read(4)
    if len(head) < 4 or head[:3] != b"\x00\x00\x08" or not 1 <= head[3] <= 4:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes (it begins with {head.hex()}); download it again."
        )
    sizes = stream.read(4 * head[3])
    shape = tuple(int(n) for n in np.frombuffer(sizes[: len(sizes) // 4 * 4], dtype=">u4"))
    if len(shape) < head[3] or prod(shape) > _LARGEST:
        raise DataError(f"{path} has a damaged header (dimensions {shape}); download it again.")
    body = stream.read(prod(shape) + 1)
    if len(body) != prod(shape):
        found = f"{len(body)} bytes" if len(body) < prod(shape) else "more"
        raise DataError(
            f"{path} should hold {prod(shape)} bytes after its header, and holds {found}; download it again."
        )
    return np.frombuffer(bytearray(body), dtype=np.uint8).reshape(
        shape
    )  # a bytearray is writable, which torch requires


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Reads the array of an IDX file. Raises DataError where the file is missing, truncated or of another format.

    The array is kept for later runs of the same process, until the date or size of the file changes. Do not write to it.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    return _read(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, date: int, size: int) -> NDArray[np.uint8]:
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return _parse(cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); download it again.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
