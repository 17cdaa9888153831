"""A display that a run can lose: encodings that lack a letter, full disks and closed pipes do not end the run.

Leaves out verbs whose results are their output (`fastmpl.cli.endings`).
"""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, TextIO

from fastmpl.untrusted import printable

FALLBACK: Final = "utf-8"


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


def show_lines(lines: Iterable[str]) -> None:
    """Prints lines for a person to standard output, if that is possible."""
    stream = DisplayStream(sys.stdout)
    stream.write("".join(f"{printable(line)}\n" for line in lines))
    stream.flush()
