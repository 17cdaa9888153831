"""The folder of a data set, from the path that a user wrote."""

import os
from pathlib import Path

from fastmpl.config.paths import expand_path
from fastmpl.data.errors import DataError


def find_folder(text: str | os.PathLike[str], key: str, purpose: str) -> Path:
    """The folder that `text`, the value of `key`, names. Raises DataError where there is none, ConfigError for an unset
    variable. `purpose` says what the folder should hold.
    """
    path = Path(expand_path(os.fspath(text), key))
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        beside = ", and beside the configuration file" if not path.is_absolute() else ""
        where = f" (looked for at {path.absolute()}{beside})" if str(path.absolute()) != os.fspath(text) else ""
        raise DataError(f"{key} = {os.fspath(text)!r} {what}{where}. Name the folder that holds {purpose}.")
    return path
