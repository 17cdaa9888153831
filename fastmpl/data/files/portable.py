"""Converts the bytes of any image file to bytes that every decoder of DALI reads in the same way.

A JPEG that every decoder accepts passes unchanged; only its markers are read (`jpeg`). Every other file (CMYK,
transparency, 16 bits, animation, other formats) is decoded by `decode` and passed on as a BMP. A file therefore gives
the same pixels whether it is decoded once or at every step.
"""

import io
from typing import NamedTuple

import numpy as np

from fastmpl.data.files import jpeg
from fastmpl.data.files.decode import LARGEST, decode_whole
from fastmpl.data.files.encoded import Bytes


class BadImage(Exception):
    """These bytes hold no usable image; the message is the reason, for the list of bad files."""


class Picture(NamedTuple):
    """Bytes for DALI to decode, and the size in pixels of the upright image."""

    content: Bytes
    height: int
    width: int


def make_portable(content: Bytes, *, trusted: bool = True) -> Picture:
    """Converts the bytes of a file; `trusted` False decodes them here in any case. Raises BadImage without an image."""
    if not content.size:
        raise BadImage("the file is empty")
    found = jpeg.read_header(content.tobytes()) if trusted else None
    if found is not None:
        if found.height * found.width > LARGEST:
            raise BadImage(f"{found.width} x {found.height} pixels, more than {LARGEST // 10**6} million")
        return Picture(content, found.height, found.width)
    image, reason = decode_whole(content.tobytes())
    if image is None:
        raise BadImage(reason)
    out = io.BytesIO()
    image.save(out, "BMP")
    return Picture(np.frombuffer(out.getvalue(), np.uint8), image.height, image.width)
