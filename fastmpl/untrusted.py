"""Files and words that come from elsewhere: what is opened, how much of it is read, and how it is shown.

A pipe or a device in the place of a file would be waited for, or never end. A control character in a name would be obeyed
by the terminal, and a format character would show another text than there is.
"""

import errno
import json
import os
import stat
import tokenize
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

NO_FILE: Final = "it is no regular file (a pipe, a socket or a device)"
LARGEST_JSON: Final = 64 << 20  # bytes
# what numpy raises, besides OSError, for a .npy or .npz file that is damaged or was never one
DAMAGED_ARRAY: Final = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, RuntimeError),  # RecursionError included
    *(SyntaxError, tokenize.TokenError),  # of a header
    *(ArithmeticError, MemoryError),  # of a shape
    *(zlib.error, zipfile.BadZipFile, zipfile.LargeZipFile),
)
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, format, surrogates, U+2028, U+2029


def printable(text: Path | str) -> str:
    """A text with its control and format characters escaped: a terminal must not obey what it shows."""
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(ascii(letter)[1:-1] if unicodedata.category(letter) in _HIDDEN else letter for letter in text)


def open_regular(path: str, flags: int = os.O_RDONLY) -> int:
    """Opens a regular file, as an `opener` of `open`. Raises OSError at once for a pipe, a device or a folder."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise OSError(errno.EINVAL, NO_FILE, path)
    return descriptor


def read_bytes(path: Path, most: int = -1) -> bytes:
    """The bytes of a regular file, `most` of them. Raises OSError if it cannot be read."""
    with open(path, "rb", opener=open_regular) as file:
        return file.read(most)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a regular file. Raises OSError if it cannot be read, and ValueError if it holds no object."""
    content = read_bytes(path, LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise ValueError(f"it is larger than {LARGEST_JSON} bytes")
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found
