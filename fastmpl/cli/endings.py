"""How a verb ends: the sentence on stderr, and the exit code, for every exception that it can raise."""

import errno
import hashlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fastmpl.errors import UNEXPECTED, FastMPLError, StorageError
from fastmpl.telemetry.output import count_columns, fold_facts
from fastmpl.untrusted import printable

READER_GONE: Final = 141  # as a shell counts SIGPIPE
LONGEST: Final = 200  # characters of an unexpected error's own words
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # a full disk, a used-up quota, a terminal that has gone
MORE_MEMORY: Final = (
    "more memory is needed than there is. Lower data.batch_unlabelled, or set system.recompute = true; "
    "`fastmpl plan` says what a step needs."
)


class OutOfMemoryError(FastMPLError):
    """The machine or the GPU has too little memory."""

    exit_code = 5
    topic = "Memory"


def say(text: object, *, error: bool = False) -> None:
    """Prints the lines of a verb, with what a terminal would obey escaped."""
    lines = "\n".join(map(printable, str(text).split("\n")))
    print(lines, file=sys.stderr if error else sys.stdout, flush=True)


def say_facts(lines: Iterable[str]) -> None:
    """Prints lines of the form `label   text`, each as soon as it is there, folded to the width of a terminal."""
    for line in lines:
        print(fold_facts(printable(line), count_columns(sys.stdout)), flush=True)


def open_terminal() -> None:
    """Makes stdout and stderr writable whatever the locale; a stream that the shell closed becomes the null device.

    Silences what torch says of its own code, of which a user can change nothing: a warning, and the C++ stacks of every
    rank that loses another one, above the sentence that names it. TORCH_CPP_LOG_LEVEL brings the stacks back.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (it lives as long as the process)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def print_error(error: FastMPLError, debug: bool) -> int:
    """Prints the sentence of an expected error, or with --debug its traceback; returns its exit code."""
    if debug:
        traceback.print_exception(error)
    elif not error.told:
        print(error, file=sys.stderr)
    return error.exit_code


def print_unexpected(error: Exception, debug: bool) -> int:
    """Prints one sentence for an exception that nothing expected; returns its exit code.

    A full disk, a path that cannot be used, a reader that has gone and a lack of memory are named as such. Anything
    else is a fault of fastmpl.
    """
    if isinstance(error, BrokenPipeError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (the interpreter flushes it at exit)
        return READER_GONE
    if isinstance(error, OSError) and error.errno in FULL:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return print_error(
            StorageError(f"{error.filename or 'the output'} cannot be written: {error.strerror}."), debug
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return print_error(StorageError(f"{str(error.filename)[:LONGEST]} cannot be used: {error.strerror}."), debug)
    if _lacks_memory(error):
        return print_error(OutOfMemoryError(MORE_MEMORY), debug)
    if debug:
        traceback.print_exception(error)
    say(_describe_fault(error), error=True)
    return UNEXPECTED


def _lacks_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    )  # torch's, which is not imported


def _describe_fault(error: Exception) -> str:
    """The sentence for a fault of ours, with a number that is the same wherever the same line fails the same way."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.name}:{frame.lineno}" for frame in frames]
    number = hashlib.sha256("\n".join([type(error).__name__, *places]).encode()).hexdigest()[:8]
    where = places[-1] if places else "an unknown place"
    words = " ".join(str(error).split())[:LONGEST]
    return (
        f"fastmpl: a fault of the program, number {number} ({type(error).__name__} at {where}: {words}). "
        "Report it with this number and the command; --debug shows the traceback."
    )
