"""Paths as users write them: with ~ and with environment variables, in every key and in every list alike."""

import os
import re
from pathlib import Path
from typing import Final

from fastmpl.data.errors import DataError

_VARIABLE: Final = re.compile(r"\$(\w+|\{[^}]*\})")


def expand_path(text: str | os.PathLike[str], key: str) -> Path:
    """The path that `text`, the value of `key`, stands for. Raises DataError for a variable that is not set."""
    expanded = os.path.expanduser(os.path.expandvars(text))
    unset = _VARIABLE.search(expanded)
    if unset and not os.path.exists(expanded):  # a dollar may be a part of a name
        raise DataError(
            f"{key} = {os.fspath(text)!r}: the variable {unset[0]} is not set. Set it, or write the path out."
        )
    return Path(expanded)


def find_folder(text: str | os.PathLike[str], key: str, purpose: str) -> Path:
    """The folder that `text` names. Raises DataError where there is none; `purpose` says what it should hold."""
    path = expand_path(text, key)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        where = "" if path.is_absolute() and os.fspath(text) == str(path) else f" (looked for at {path.absolute()})"
        raise DataError(f"{key} = {os.fspath(text)!r} {what}{where}. Name the folder that holds {purpose}.")
    return path
