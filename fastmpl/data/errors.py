"""The one error of this package that a user is meant to read."""

from fastmpl.errors import FastMPLError


class DataError(FastMPLError):
    """The data cannot be used. The message is one sentence or two: what was asked, what was found, what to do."""

    exit_code = 3
    topic = "Data"
