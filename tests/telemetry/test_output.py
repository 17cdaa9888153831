"""Printing where the encoding lacks a letter, the disk is full, or nobody reads any more."""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from typing import TextIO

import pytest

from fastmpl.telemetry.output import DisplayStream, count_columns, fold_facts, show_lines


class Failing(io.StringIO):
    """A stream that fails as one on a full disk does."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.asked = error, 0

    def write(self, text: str) -> int:
        self.asked += 1
        raise self.error


def ascii_stream() -> tuple[TextIO, io.BytesIO]:
    raw = io.BytesIO()
    return io.TextIOWrapper(raw, encoding="ascii", write_through=True), raw


def test_letters_that_an_encoding_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, raw = ascii_stream()
    monkeypatch.setattr(sys, "stdout", stream)
    show_lines(["Größe 猫 \udcff"])
    assert raw.getvalue() == b"Gr\\xf6\\xdfe \\u732b \\udcff\n"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("I/O operation on closed file")])
def test_a_display_goes_on_without_its_stream(error: Exception) -> None:
    failing = Failing(error)
    stream = DisplayStream(failing)
    for _ in range(3):
        assert stream.write("a line") == 6
        stream.flush()
    assert stream.is_gone
    assert failing.asked == 1
    assert not stream.isatty()


def test_a_display_without_a_stream_shows_nothing() -> None:
    stream = DisplayStream(None)
    stream.write("a line")
    stream.flush()
    assert stream.is_gone and not stream.isatty()


def test_the_interpreter_ends_in_silence_after_a_closed_pipe() -> None:
    """What is left in the buffer of standard output goes nowhere, and not into a traceback at the end."""
    program = (
        "import sys\nfrom fastmpl.telemetry.output import DisplayStream\nstream = DisplayStream(sys.stdout)\n"
        "for _ in range(10000):\n    stream.write('a line')\nstream.flush()\nsys.exit(0 if stream.is_gone else 3)"
    )
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_facts_are_folded_below_themselves_and_commands_stay_whole() -> None:
    line = "student     averaged student of step 60; without validation images none is selected"
    assert fold_facts(line, 40) == (
        "student     averaged student of step 60;\n            without validation images\n            none is selected"
    )
    assert fold_facts(line, 0) == line  # a pipe
    command = "next      fastmpl predict runs/pictures IMAGES"
    assert fold_facts(command, 40) == command
    path = "weights   " + "a/b-c" * 12
    assert fold_facts(path, 40) == path  # a label is never alone on its line


def test_columns_are_those_of_the_terminal() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 61, 0, 0))
    with os.fdopen(theirs, "w") as stream:
        assert count_columns(stream) == 61
    os.close(ours)
    assert count_columns(None) == 0
    assert count_columns(io.StringIO()) == 0
