"""A display that a run can lose: encodings that lack a letter, full disks and closed pipes do not end the run.

Leaves out verbs whose results are their output (`fastmpl.cli.endings`).
"""

import os
import re
import sys
import textwrap
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, TextIO

from fastmpl.untrusted import printable

FALLBACK: Final = "utf-8"
NARROWEST: Final = 20  # columns beside a label, below which nothing is folded
COMMAND: Final = "next"  # label of a line that is copied whole


def to_encodable(text: str, stream: TextIO | None) -> str:
    """`text` with escapes in the place of letters that the encoding of `stream` lacks."""
    encoding = getattr(stream, "encoding", None) or FALLBACK
    return text.encode(encoding, "backslashreplace").decode(encoding)


def discard(stream: TextIO | None) -> None:
    """Sends everything that is written to a stream from now on to nowhere, also what the interpreter flushes at its end."""
    if stream is None:
        return
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class DisplayStream:
    """A text stream for a display, which never raises: once it cannot be written, `is_gone` and nothing more is."""

    def __init__(self, stream: TextIO | None) -> None:
        """stream: standard output or error; None, as Python has it where the file descriptor is closed."""
        self._stream = stream
        self.is_gone = stream is None

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or FALLBACK

    def isatty(self) -> bool:
        try:
            return not self.is_gone and self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("the stream is closed")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if not self.is_gone and self._stream is not None:
            try:
                self._stream.write(to_encodable(text, self._stream))
            except (OSError, ValueError):
                self._give_up()
        return len(text)

    def flush(self) -> None:
        if not self.is_gone and self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def _give_up(self) -> None:
        self.is_gone = True
        discard(self._stream)


def count_columns(stream: TextIO | DisplayStream | None) -> int:
    """The columns of the terminal that a stream goes to; 0 where it goes elsewhere, and lines stay whole."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream is not None and stream.isatty() else 0
    except (OSError, ValueError):
        return 0


def fold_facts(line: str, columns: int) -> str:
    """`label   text` in lines of at most so many columns, the text below itself. Paths and commands stay whole."""
    label = re.match(r"\S+ {2,}", line)
    indent = label.end() if label else 0
    if len(line) <= columns or columns < indent + NARROWEST or line.startswith(COMMAND):
        return line
    parts = textwrap.wrap(line[indent:], columns - indent, break_long_words=False, break_on_hyphens=False)
    return line[:indent] + ("\n" + " " * indent).join(parts)


def show_lines(lines: Iterable[str]) -> None:
    """Prints lines for a person to standard output, if that is possible."""
    stream = DisplayStream(sys.stdout)
    columns = count_columns(stream)
    stream.write("".join(f"{fold_facts(printable(line), columns)}\n" for line in lines))
    stream.flush()
