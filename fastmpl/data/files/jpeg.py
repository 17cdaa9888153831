"""Tells from the markers of a JPEG, in microseconds, whether every decoder will accept it.

One image that the decoder refuses ends the whole batch, so no such image may reach it. Decoders tolerate damage between
the markers, but no damage to a table or a frame, and no missing end. So this module walks all markers and compares their
segments with the standard (ITU-T T.81, annex B) at every point where a decoder would refuse them. An unusual file gets no
verdict here: the caller has a slower reader for it.
"""

import struct
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

START, END, SCAN, QUANTISATION, HUFFMAN, RESTART = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD
FRAMES: Final = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; all with Huffman codes
PROGRESSIVE: Final = 0xC2
EXIF: Final = 0xE1
_SKIPPED: Final = frozenset((*range(0xE0, 0xF0), 0xFE))  # application data and comments
_MOST_SCANS: Final = 100  # more are an attack on the decoder's time
_MOST_BLOCKS: Final = 10  # in a group of interleaved blocks
_ORIENTATION, _SHORT = 0x0112, 3
_TRANSPOSED: Final = (5, 6, 7, 8)  # orientations that swap height and width


class JpegHeader(NamedTuple):
    """Size in pixels of the upright image, and its number of channels, 1 or 3."""

    height: int
    width: int
    channels: int


class _Component(NamedTuple):
    """One colour's sampling factors and quantisation table."""

    across: int
    down: int
    table: int


class _Frame(NamedTuple):
    height: int
    width: int
    progressive: bool
    components: dict[int, _Component]


class _UnusualJpeg(Exception):
    """The JPEG has something that a decoder may refuse."""


def _require(holds: bool) -> None:
    if not holds:
        raise _UnusualJpeg


def _parse_quantisation(part: bytes) -> set[int]:
    """The numbers of the tables that a segment defines."""
    found, place = set(), 0
    while place < len(part):
        wide, number = divmod(part[place], 16)
        _require(wide <= 1 and number <= 3)
        found.add(number)
        place += 1 + 64 * (wide + 1)
    _require(place == len(part))
    return found


def _parse_huffman(part: bytes) -> set[int]:
    """The tables that a segment defines: class (0 for DC, 1 for AC) times 16, plus number."""
    found, place = set(), 0
    while place < len(part):
        _require(place + 17 <= len(part))
        kind, number = divmod(part[place], 16)
        counts = part[place + 1 : place + 17]
        symbols = part[place + 17 : place + 17 + sum(counts)]
        _require(kind <= 1 and number <= 3 and len(symbols) == sum(counts) <= 256)
        _require(kind == 1 or not symbols or max(symbols) <= 15)
        _require(_fits(counts))
        found.add(part[place])
        place += 17 + len(symbols)
    return found


def _fits(counts: bytes) -> bool:
    """Whether a prefix code with `counts` words of 1, 2, ... 16 bits exists (Kraft), the word of ones left free."""
    return sum(count << (15 - bits) for bits, count in enumerate(counts)) < 1 << 16


def _parse_frame(part: bytes, marker: int) -> _Frame:
    _require(len(part) >= 6)
    precision, height, width, count = struct.unpack_from(">BHHB", part)
    _require(precision == 8 and height > 0 and width > 0 and count in (1, 3) and len(part) == 6 + 3 * count)
    components = {}
    for number, sampling, table in struct.iter_unpack("BBB", part[6:]):
        components[number] = _Component(sampling // 16, sampling % 16, table)
    _require(len(components) == count)
    for axis in (0, 1):
        factors = [component[axis] for component in components.values()]
        _require(all(1 <= f <= 4 and max(factors) % f == 0 for f in factors))
    _require(all(component.table <= 3 for component in components.values()))
    return _Frame(height, width, marker == PROGRESSIVE, components)


def _check_scan(part: bytes, frame: _Frame, quantisation: set[int], huffman: set[int]) -> None:
    """Compares the header of a scan with the tables and the frame that were defined before it."""
    _require(len(part) >= 1 and 1 <= part[0] <= 3 and len(part) == 4 + 2 * part[0])
    chosen = dict(struct.iter_unpack("BB", part[1:-3]))
    _require(len(chosen) == part[0] and chosen.keys() <= frame.components.keys())
    own = [frame.components[number] for number in chosen]
    _require(all(component.table in quantisation for component in own))
    _require(len(own) == 1 or sum(component.across * component.down for component in own) <= _MOST_BLOCKS)
    first, last, (high, low) = part[-3], part[-2], divmod(part[-1], 16)
    if frame.progressive:
        _require(first <= last <= 63 and (first > 0 or last == 0) and (first == 0 or len(own) == 1))
        _require(low <= 13 and high in (0, low + 1))
    else:
        _require((first, last, high, low) == (0, 63, 0, 0))
    for tables in chosen.values():
        dc, ac = divmod(tables, 16)
        if first == 0 and high == 0:
            _require(dc in huffman)
        if last > 0:
            _require(16 + ac in huffman)


def _swaps_sides(part: bytes) -> bool:
    """Whether an APP1 segment's EXIF data swaps height and width."""
    if not part.startswith(b"Exif\0\0"):
        _require(part.startswith(b"http"))  # XMP
        return False
    tiff = part[6:]
    _require(tiff[:4] in (b"II*\0", b"MM\0*"))
    order = "<" if tiff.startswith(b"I") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        entries = list(struct.iter_unpack(f"{order}HHIHxx", tiff[start + 2 : start + 2 + 12 * count]))
    except struct.error as error:
        raise _UnusualJpeg from error
    _require(len(entries) == count)
    found = [entry[1:] for entry in entries if entry[0] == _ORIENTATION]
    _require(not found or (len(found) == 1 and found[0][:2] == (_SHORT, 1) and 1 <= found[0][2] <= 8))
    return bool(found) and found[0][2] in _TRANSPOSED


def _find_markers(content: bytes) -> NDArray[np.int64]:
    """Where a marker may stand that ends a scan's data: all but padding, escaped bytes of data and restarts."""
    values = np.frombuffer(content, np.uint8)
    place = np.flatnonzero(values[:-1] == 0xFF)
    after = values[place + 1]
    at: NDArray[np.int64] = place[(after != 0) & (after != 0xFF) & ((after < 0xD0) | (after > 0xD7))]
    return at


def _walk(content: bytes) -> JpegHeader:
    place, frame, scans, swapped, markers = 2, None, 0, False, _find_markers(content)
    quantisation: set[int] = set()
    huffman: set[int] = set()
    while True:
        _require(content[place : place + 1] == b"\xff")
        while content[place + 1 : place + 2] == b"\xff":  # padding
            place += 1
        marker = content[place + 1] if place + 1 < len(content) else 0
        if marker == END:
            break
        _require(place + 4 <= len(content))
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        _require(place + 4 <= end <= len(content))
        part = content[place + 4 : end] if marker not in _SKIPPED else b""
        if marker == QUANTISATION:
            quantisation |= _parse_quantisation(part)
        elif marker == HUFFMAN:
            huffman |= _parse_huffman(part)
        elif marker in FRAMES:
            _require(frame is None)
            frame = _parse_frame(part, marker)
        elif marker == SCAN and frame is not None:
            _check_scan(part, frame, quantisation, huffman)
            scans += 1
            following = int(np.searchsorted(markers, end))
            _require(following < len(markers) and scans <= _MOST_SCANS)
            end = int(markers[following])
        elif marker == RESTART:
            _require(len(part) == 2)
        elif marker == EXIF:
            swapped = swapped or _swaps_sides(content[place + 4 : end])
        else:
            _require(marker in _SKIPPED)
        place = end
    _require(frame is not None and scans > 0)
    assert frame is not None
    size = (frame.width, frame.height) if swapped else (frame.height, frame.width)
    return JpegHeader(*size, len(frame.components))


def read_header(content: bytes) -> JpegHeader | None:
    """Reads size and channels of a JPEG that every decoder accepts; None where that is not certain."""
    if content[:2] != b"\xff\xd8":
        return None
    try:
        return _walk(content)
    except _UnusualJpeg:
        return None
