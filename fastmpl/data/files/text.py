"""Reads small text files in the encodings that editors and spreadsheets write."""

import codecs
from pathlib import Path
from typing import Final

from fastmpl.data.errors import DataError, printable
from fastmpl.untrusted import read_bytes

_MARKS: Final = (  # byte-order marks; that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(content: bytes, name: str) -> str:
    """Decodes UTF-8, or what a byte-order mark names. Bytes that are no UTF-8 become surrogates, as in file names.

    Raises DataError where the bytes are another encoding's.
    """
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is damaged: it begins as {encoding} and is not. Save it as UTF-8.") from error
    if "\0" in text:
        raise DataError(f"{name} is no text in UTF-8 (it holds the byte 0). Save it as UTF-8.")
    return text


def read_text(path: Path) -> str:
    """The text of a file, with lines that end in a line feed. Raises DataError where it is no text."""
    try:
        text = decode_text(read_bytes(path), printable(path))
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror or error}.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without their ends. Raises DataError where it is no text."""
    lines = read_text(path).split("\n")
    return lines[:-1] if lines[-1] == "" else lines
