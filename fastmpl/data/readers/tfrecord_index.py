"""Lists the images in a TFRecord file of tf.train.Example, with an account of all its records.

A record is a length (8 bytes), a checksum of it (4), that many bytes, and a checksum of those (4), all little-endian.
An Example is a protocol buffer: a map from names to lists of bytes, floats or integers. Only what leads to the image's
bytes and to its class is read, so that an index costs no pass over the images.

    image/encoded, image                               the file
    image/class/synset, .../text, .../label, label     its class, the first of them that is there
    image/filename, file_name                          its name (optional)

The last of each are those of TensorFlow Datasets. An integer is the position of a class, text its name.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from fastmpl.data.errors import DataError, printable
from fastmpl.data.inventory import Inventory, Problem, fold_problems
from fastmpl.data.readers.shards import Entry, ShardContent
from fastmpl.data.readers.tar_index import COMPRESSED

IMAGES: Final = (b"image/encoded", b"image")
CLASSES: Final = (b"image/class/synset", b"image/class/text", b"image/class/label", b"label")
NAMES: Final = (b"image/filename", b"file_name")
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


class Word(NamedTuple):
    """The first entry of a list, as text; `numbered`: it is an integer."""

    text: str
    numbered: bool = False


def _read_word(data: mmap.mmap, feature: Field) -> Word:
    for entry in _fields(data, feature.start, feature.end):
        if feature.number == 1:
            return Word(data[entry.start : entry.end].decode("utf-8", "surrogateescape"))
        if feature.number == 3:  # integers: one by one, or packed into bytes
            value = entry.value if entry.kind == _VARINT else _varint(data, entry.start, entry.end)[0]
            return Word(str(value - (1 << 64) if value >= 1 << 63 else value), numbered=True)
    return Word("")


def _why_no_image(names: list[bytes]) -> str:
    found = ", ".join(sorted(printable(os.fsdecode(name)) for name in names)) or "none"
    return f"the record has no feature image/encoded or image; its features are {found}"


def _read_example(data: mmap.mmap, start: int, end: int, number: int) -> Entry | str:
    """The image of an Example, or why it has none."""
    images: dict[bytes, Field | None] = {}
    words: dict[bytes, Word] = {}
    names = []
    for name, feature in _features(data, start, end):
        names.append(name)
        if name in IMAGES and feature.number == 1:
            images[name] = next(_fields(data, feature.start, feature.end), None)
        elif name in (*CLASSES, *NAMES):
            words[name] = _read_word(data, feature)
    image = next((images[name] for name in IMAGES if images.get(name) is not None), None)
    if image is None:
        return _why_no_image(names)
    word = next((words[name] for name in CLASSES if name in words and words[name].text), Word(""))
    called = next((words[name].text for name in NAMES if name in words and words[name].text), f"{number:08d}")
    return Entry(image.start, image.end - image.start, called, *word)


def _records(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where each record starts, and its size with its frame."""
    place = 0
    while place < len(data):
        if place + HEADER > len(data):
            raise ValueError("a record does not end")
        (length,) = struct.unpack_from("<Q", data, place)
        yield place, HEADER + length + FOOTER
        place += HEADER + length + FOOTER


def _damage(data: mmap.mmap) -> str:
    """What a file that cannot be read may be."""
    form = next((form for magic, form in COMPRESSED.items() if data[: len(magic)] == magic), "")
    if form:
        return f"The file is compressed ({form}) and has no places to read at: decompress it."
    return "The file is cut off or damaged, or it holds no tf.train.Example."


def scan_tfrecord(path: Path) -> ShardContent:
    """The images of a file, in its order. Raises DataError where it is damaged, OSError where it cannot be opened."""
    if not path.stat().st_size:
        return ShardContent([], (), Inventory(0))
    entries, problems = [], []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        number = 0
        try:
            for number, (offset, size) in enumerate(_records(data)):
                start, end = offset + HEADER, offset + size - FOOTER
                if end + FOOTER > len(data) or start > end:
                    raise ValueError("its frame is wrong")
                found = _read_example(data, start, end, number)
                if isinstance(found, str):
                    problems.append(Problem(f"{path}, record {number}", found))
                else:
                    entries.append(found)
        except (ValueError, struct.error) as error:
            raise DataError(f"{printable(path)}, record {number}: {error}. {_damage(data)}") from error
    return ShardContent(entries, fold_problems(problems), Inventory(len(entries) + len(problems)))
