"""Printing that survives its terminal: encodings that lack a letter, full disks, closed pipes.

A run goes on without its display (`DisplayStream`). A verb whose results are its output ends with one sentence if they
cannot be written (`ResultStream`, `print_result`). Errors are printed where that is possible (`print_error`).
"""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, TextIO

from fastmpl.errors import StorageError

FALLBACK: Final = "utf-8"


class OutputError(StorageError):
    """The results cannot be written to standard output."""

    topic = "Output"


class ReaderGoneError(OutputError):
    """The reader of standard output has ended, as `head` does; nothing is printed about it."""

    told = True


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


class ResultStream:
    """Standard output for results. Raises OutputError if they cannot be written."""

    def write(self, text: str) -> int:
        stream = sys.stdout
        try:
            if stream is None:
                raise ValueError("it is closed")
            stream.write(to_encodable(text, stream))
        except (OSError, ValueError) as error:
            raise _explain(error) from error
        return len(text)

    def flush(self) -> None:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except (OSError, ValueError) as error:
            raise _explain(error) from error


def _explain(error: OSError | ValueError) -> OutputError:
    discard(sys.stdout)
    if isinstance(error, BrokenPipeError):
        return ReaderGoneError("The reader of standard output has ended.")
    reason = error.strerror if isinstance(error, OSError) else "it is closed"
    return OutputError(
        f"Standard output cannot be written: {reason}. Send it to a terminal, a pipe, or a file with room."
    )


def print_result(text: str = "", end: str = "\n") -> None:
    """Prints a result and flushes it. Raises OutputError if it cannot be written."""
    stream = ResultStream()
    stream.write(text + end)
    stream.flush()


def show_lines(lines: Iterable[str]) -> None:
    """Prints lines for a person to standard output, if that is possible."""
    stream = DisplayStream(sys.stdout)
    stream.write("".join(f"{line}\n" for line in lines))
    stream.flush()


def print_error(text: str) -> None:
    """Prints to standard error, if that is possible."""
    stream = DisplayStream(sys.stderr)
    stream.write(text + "\n")
    stream.flush()
