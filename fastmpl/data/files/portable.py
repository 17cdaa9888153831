"""Bytes of any image file -> bytes that every decoder of DALI reads alike, with the size of the picture in them.

JPEGs that no decoder refuses pass as they are: only their markers are read (`jpeg`). All else (CMYK, transparency, 16 bits,
animation, other formats) is decoded by the one rule of `decode` and handed on uncompressed, so that a file gives the
same picture whether it is decoded once or at every step.
"""

import io
from typing import NamedTuple

import numpy as np

from fastmpl.data.files import jpeg
from fastmpl.data.files.decode import LARGEST, decode_whole
from fastmpl.data.files.encoded import Bytes


class BadImage(Exception):
    """These bytes hold no picture that can be used; the message is the reason, for a list of bad files."""


class Picture(NamedTuple):
    """What DALI decodes, and how large the upright picture is."""

    content: Bytes
    height: int
    width: int


def portable(content: Bytes, *, trusted: bool = True) -> Picture:
    """The picture in a file's bytes; decoded here where they are not `trusted`. Raises BadImage where there is none."""
    if not content.size:
        raise BadImage("the file is empty")
    found = jpeg.header(content.tobytes()) if trusted else None
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
