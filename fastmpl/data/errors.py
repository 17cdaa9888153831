"""The one error of this package that a user is meant to read."""


class DataError(Exception):
    """The data cannot be used. The message is one sentence or two: what was asked, what was found, what to do."""
