"""Bytes of any image file -> bytes that every decoder of DALI reads alike, with the size of the picture in them.

JPEGs of one or three channels pass as they are: only their header is read. All else (CMYK, transparency, 16 bits,
animation, other formats) is decoded by the one rule of `decode` and handed on uncompressed, so that a file gives the
same picture whether it is decoded once or at every step.
"""

import io
import struct
from typing import Final, NamedTuple

import numpy as np

from fastmpl.data.decode import LARGEST, decode_whole
from fastmpl.data.encoded import Bytes

_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that give the size
_BARE: Final = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length
_SCAN, _EXIF, _ORIENTATION, _SHORT = 0xDA, 0xE1, 0x0112, 3
_TRANSPOSED: Final = (5, 6, 7, 8)  # EXIF orientations that swap height and width


class BadImage(Exception):
    """These bytes hold no picture that can be used; the message is the reason, for a list of bad files."""


class Picture(NamedTuple):
    """What DALI decodes, and how large the upright picture is."""

    content: Bytes
    height: int
    width: int


class _Header(NamedTuple):
    height: int
    width: int
    channels: int


def _orientation(exif: bytes) -> int:
    """The EXIF orientation in a JPEG's APP1 segment; 1, upright, where there is none."""
    tiff = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if exif[:6] != b"Exif\0\0" or order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(count):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, start + 2 + 12 * entry)
            if tag == _ORIENTATION and kind == _SHORT:
                return int(struct.unpack_from(f"{order}H", tiff, start + 2 + 12 * entry + 8)[0])
    except struct.error:  # damaged EXIF data beside whole pixels
        pass
    return 1


def _jpeg_header(content: bytes) -> _Header | None:
    """Upright size and channels of a JPEG; None where its markers do not lead to a frame."""
    place, transposed = 2, False
    while place + 9 <= len(content):
        if content[place] != 0xFF:
            return None
        marker = content[place + 1]
        if marker == 0xFF or marker in _BARE:  # padding, or a marker of two bytes
            place += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        if marker in _FRAMES:
            height, width, channels = struct.unpack_from(">HHB", content, place + 5)
            return _Header(*((width, height) if transposed else (height, width)), channels)
        if marker == _SCAN:
            return None
        if marker == _EXIF:
            transposed = _orientation(content[place + 4 : place + 2 + length]) in _TRANSPOSED
        place += 2 + length
    return None


def portable(content: Bytes) -> Picture:
    """The picture in a file's bytes. Raises BadImage where there is none to be used."""
    if not content.size:
        raise BadImage("the file is empty")
    if content[:2].tobytes() == b"\xff\xd8":
        # a header is a few hundred bytes, or some tens of thousands beside a preview and a colour profile
        found = _jpeg_header(content[:65536].tobytes()) or _jpeg_header(content.tobytes())
        if found is not None and found.channels in (1, 3) and found.height and found.width:
            if found.height * found.width > LARGEST:
                raise BadImage(f"{found.width} x {found.height} pixels, more than {LARGEST // 10**6} million")
            return Picture(content, found.height, found.width)
    image, reason = decode_whole(content.tobytes())
    if image is None:
        raise BadImage(reason)
    out = io.BytesIO()
    image.save(out, "BMP")
    return Picture(np.frombuffer(out.getvalue(), np.uint8), image.height, image.width)
