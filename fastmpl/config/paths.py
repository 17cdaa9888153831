"""Paths as people write them: `~` and variables are expanded, and a relative one is also looked for beside the file.

The shell does this for words of a command line. Nothing does it for a TOML file, so it is done here, for every key that
holds a path and in the same way.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fastmpl.config.meaning import names_run
from fastmpl.errors import ConfigError

READ: Final = (  # there before the run starts
    "data.root",
    "data.store",
    "data.features",
    "data.filter_store",
    "teacher.model",  # may be the folder of a run
    "teacher.pretrained",
    "student.pretrained",
)
PATHS: Final = ("run.output", *READ)
_VARIABLE: Final = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)


def expand_path(text: str, key: str) -> str:
    """`text` with `~` and variables replaced, unless it names a file as it is. Raises ConfigError for an unset variable."""
    if any(ord(letter) < 32 for letter in text):
        raise ConfigError(f"{key} = {text[:64]!r} holds a control character, and no path does. Remove it.")
    if ("$" not in text and not text.startswith("~")) or os.path.lexists(text):
        return text
    expanded = os.path.expandvars(os.path.expanduser(text))
    if left := _VARIABLE.search(expanded):
        name = left[1] or left[2]
        raise ConfigError(
            f"{key} = {text!r} names the variable {name}, which is not set. Set it, or write the path itself."
        )
    if expanded.startswith("~"):
        raise ConfigError(f"{key} = {text!r} names the home of a user whom this machine does not know.")
    return expanded


def _names_path(key: str, text: str) -> bool:
    """Whether the value of a key in PATHS is a path: models and timm's hub have names."""
    return bool(text) and text != "hub" and (key != "teacher.model" or names_run(text))


def _list_starts(values: Mapping[str, Any], file: Path) -> list[Path]:
    """The folders, besides this one, that relative paths of a file may start from.

    They are the file's own folder and, for the config.toml of a run, the folder that the run was started in: it lies as far
    above the run's folder as run.output says.
    """
    starts, folder = [file.parent], Path(os.path.abspath(file)).parent
    run = Path(str(values.get("run.output", "")), str(values.get("run.name", "")))
    depth = len(run.parts)
    is_known = file.name == "config.toml" and depth > 0 and not run.is_absolute() and ".." not in run.parts
    if is_known and folder.parts[-depth:] == run.parts:
        starts.append(folder.parents[depth - 1])
    return starts


def suggest_run(path: Path) -> str:
    """A question, after a space, where `path` is the name of a run in the usual folder, or of its file; else empty."""
    runs = [Path("runs") / name for name in (path.name, path.stem)]
    found = next((run for run in runs if run != path and (run / "config.toml").is_file()), None)
    return f" Did you mean {found}?" if found else ""


def resolve_paths(values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The values of a file with every path expanded.

    A path that is not here is taken from beside the file, or from where the run was started, if the file is a run's.
    """
    resolved, starts = dict(values), _list_starts(values, file)
    for key in PATHS:
        text = values.get(key)
        if not isinstance(text, str) or not _names_path(key, text):
            continue
        text = expand_path(text, f"{file}: {key}")
        if key in READ and not os.path.isabs(text) and not os.path.lexists(text):
            text = next((str(start / text) for start in starts if os.path.lexists(start / text)), text)
        resolved[key] = text
    return resolved
