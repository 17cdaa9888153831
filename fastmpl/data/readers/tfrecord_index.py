"""The images in a TFRecord file of tf.train.Example: by DALI's index beside it (tfrecord2idx), or by its own framing.

A record is a length (8 bytes), a checksum of it (4), that many bytes, and a checksum of those (4), all little-endian.
An Example is a protocol buffer: a map from names to lists of bytes, floats or integers. Only what leads to the image's
bytes and to its class is read, so that an index costs no pass over the images.

    image/encoded                                      the file
    image/class/synset, .../text, .../label            its class, the first of them that is there
    image/filename                                     its name (optional)
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from fastmpl.data.errors import DataError
from fastmpl.data.readers.shards import Entry, index_file

IMAGE: Final = b"image/encoded"
CLASSES: Final = (b"image/class/synset", b"image/class/text", b"image/class/label")
NAME: Final = b"image/filename"
HEADER, FOOTER = 12, 4
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types


class Field(NamedTuple):
    """A field of a protocol buffer: its number, its wire type, and where its content is; `value` of an integer."""

    number: int
    kind: int
    start: int
    end: int
    value: int = 0


def _varint(data: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and the place after it."""
    value = shift = 0
    while place < end and shift < 64:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError("a number does not end")


def _fields(data: mmap.mmap, place: int, end: int) -> Iterator[Field]:
    while place < end:
        tag, place = _varint(data, place, end)
        kind, value, start = tag & 7, 0, place
        if kind == _VARINT:
            value, place = _varint(data, place, end)
        elif kind == _BYTES:
            length, start = _varint(data, place, end)
            place = start + length
        elif kind in (_EIGHT, _FOUR):
            place += 8 if kind == _EIGHT else 4
        else:
            raise ValueError(f"wire type {kind}")
        if place > end:
            raise ValueError("a field does not end")
        yield Field(tag >> 3, kind, start, place, value)


def _features(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[bytes, Field]]:
    """Each feature's name and its list: a field whose number is 1 for bytes, 2 for floats, 3 for integers."""
    for features in _fields(data, start, end):
        for entry in _fields(data, features.start, features.end):
            name, value = b"", None
            for part in _fields(data, entry.start, entry.end):
                if part.number == 1:
                    name = data[part.start : part.end]
                elif part.number == 2:
                    value = part
            if value is not None:
                yield from ((name, found) for found in _fields(data, value.start, value.end))


def _text(data: mmap.mmap, feature: Field) -> str:
    """A list's first entry, as text."""
    for entry in _fields(data, feature.start, feature.end):
        if feature.number == 1:
            return data[entry.start : entry.end].decode("utf-8", "replace")
        if feature.number == 3:  # integers: one by one, or packed into bytes
            return str(entry.value if entry.kind == _VARINT else _varint(data, entry.start, entry.end)[0])
    return ""


def _example(data: mmap.mmap, start: int, end: int, number: int) -> Entry | None:
    """The image of an Example; None where it has none."""
    image: Field | None = None
    texts: dict[bytes, str] = {}
    for name, feature in _features(data, start, end):
        if name == IMAGE and feature.number == 1:
            image = next(iter(_fields(data, feature.start, feature.end)), None)
        elif name in (*CLASSES, NAME):
            texts[name] = _text(data, feature)
    if image is None:
        return None
    word = next((texts[name] for name in CLASSES if texts.get(name)), "")
    return Entry(image.start, image.end - image.start, texts.get(NAME) or f"{number:08d}", word)


def _by_framing(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    place = 0
    while place < len(data):
        if place + HEADER > len(data):
            raise ValueError("a record does not end")
        (length,) = struct.unpack_from("<Q", data, place)
        yield place, HEADER + length + FOOTER
        place += HEADER + length + FOOTER


def _records(path: Path, data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where each record starts, and its size with its frame."""
    index = index_file(path)
    if not index.exists():
        yield from _by_framing(data)
        return
    for line in index.read_text().splitlines():
        offset, size = map(int, line.split())
        yield offset, size


def scan_tfrecord(path: Path) -> list[Entry]:
    """The images of a file, in its order. Raises DataError where it is damaged, OSError where it cannot be opened."""
    if not path.stat().st_size:
        return []
    entries = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        number = 0
        try:
            for number, (offset, size) in enumerate(_records(path, data)):
                start, end = offset + HEADER, offset + size - FOOTER
                if end > len(data) or start > end or struct.unpack_from("<Q", data, offset)[0] != end - start:
                    raise ValueError("its frame is wrong")
                entry = _example(data, start, end, number)
                if entry is not None:
                    entries.append(entry)
        except (ValueError, struct.error) as error:
            raise DataError(
                f"{path}, record {number}: {error}. The file is cut off or damaged, it holds no tf.train.Example, "
                "or the .idx file beside it is another's."
            ) from error
    return entries
