"""The one error of this package that a user is meant to read, and how a file is named in it."""

import unicodedata
from pathlib import Path

from fastmpl.errors import FastMPLError


class DataError(FastMPLError):
    """The data cannot be used. The message is one sentence or two: what was asked, what was found, what to do."""

    exit_code = 3
    topic = "Data"


def shown(path: Path | str) -> str:
    """A path as it can be printed, whatever bytes its name has: a terminal must not obey a file's name."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return "".join(ascii(letter)[1:-1] if unicodedata.category(letter) == "Cc" else letter for letter in text)
