"""The error of this package that a user reads, and how a message writes the name of a file."""

from fastmpl.errors import FastMPLError
from fastmpl.untrusted import printable

__all__ = ["DataError", "printable"]


class DataError(FastMPLError):
    """The data cannot be used. The message is one sentence or two: what was asked, what was found, what to do."""

    exit_code = 3
    topic = "Data"
