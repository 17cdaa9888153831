"""The error of this package that a user reads, and how a message writes the name of a file."""

import unicodedata
from pathlib import Path

from fastmpl.errors import FastMPLError


class DataError(FastMPLError):
    """The data cannot be used. The message is one sentence or two: what was asked, what was found, what to do."""

    exit_code = 3
    topic = "Data"


def printable(path: Path | str) -> str:
    """A path with its control characters escaped: a terminal must not obey the name of a file."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return "".join(ascii(letter)[1:-1] if unicodedata.category(letter) == "Cc" else letter for letter in text)
