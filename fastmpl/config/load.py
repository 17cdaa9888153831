"""Reads a Config from a TOML file and overrides, and writes it back. Precedence: default < file < overrides.

A file is untrusted. Its size, depth and numbers are bounded before its meaning is read, and every mistake in it is one
sentence of a ConfigError that names key, value and file.
"""

import difflib
import re
import shlex
import tomllib
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final

import tomli_w
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fastmpl.config.examples import list_examples
from fastmpl.config.paths import PATHS, expand_path, resolve_paths
from fastmpl.config.schema import Config
from fastmpl.config.wording import allowed_by, toml
from fastmpl.errors import ConfigError, StorageError
from fastmpl.untrusted import read_bytes

LARGEST: Final = 65_536  # bytes; the longest configuration, with every key and comment, has 8,000
DEEPEST: Final = 64  # brackets or dots of keys in a line; the parser's time grows with their square
SHOWN: Final = 5  # mistakes reported at once
FORM: Final = "A configuration has sections, and keys in them."
COMMAND_LINE: Final = "command line"
SECTIONS: Final[dict[str, Any]] = {name: field.annotation for name, field in Config.model_fields.items()}
KEYS: Final[dict[str, FieldInfo]] = {
    f"{name}.{key}": field for name, section in SECTIONS.items() for key, field in section.model_fields.items()
}
_NAMES: Final = sorted({key.rpartition(".")[2] for key in KEYS})
REMOVED: Final[dict[str, Any]] = {  # keys of earlier versions, with their last default, which saved configurations hold
    "data.decoder_padding": [16, 8],
    "feedback.cosine": False,
}
SYNONYMS: Final[Mapping[str, str]] = {  # what other tools call a key
    "arch": "model",
    "architecture": "model",
    "batch_size": "batch_labelled",
    "ema": "average",
    "ema_decay": "average",
    "epochs": "steps",
    "img_size": "image_size",
    "iterations": "steps",
    "labeled": "labels",
    "learning_rate": "lr",
    "max_steps": "steps",
    "n_labels": "labels",
    "network": "model",
    "num_labels": "labels",
    "optimizer": "optimiser",
    "output_dir": "output",
    "path": "root",
    "resolution": "image_size",
    "size": "image_size",
    "unlabeled": "unlabelled",
    "wd": "weight_decay",
}
OPEN: Final[dict[str, Any]] = {"data.image_size": 0, "data.centre_crop": 0.0}  # which a pretrained network decides
_QUOTED_OR_COMMENT: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#.*')


def _suggest_file(folder: Path) -> str:
    if (folder / "config.toml").is_file():
        return f"Did you mean {folder / 'config.toml'}?"
    return f"`fastmpl init {shlex.quote(str(folder))}` writes one for a folder of pictures."


def _suggest_example(path: Path) -> str:
    beside = [str(file) for file in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
    if near := difflib.get_close_matches(str(path), beside, n=1, cutoff=0.8):
        return f"Did you mean {near[0]}?"
    name = path.stem if path.stem in list_examples() else "digits"
    return f"`fastmpl init --example {name}` writes an example here."


def _bounded_text(path: Path) -> str:
    try:
        content = read_bytes(path, LARGEST + 1)
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a folder, and the configuration is a TOML file. {_suggest_file(path)}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. {_suggest_example(path)}") from error
    except ValueError as error:  # a null character in the name
        raise ConfigError(f"{str(path)!r} is no name of a file.") from error
    if len(content) > LARGEST:
        raise ConfigError(f"{path} is larger than {LARGEST} bytes, too large for the configuration of a run.")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8 (byte {error.start}).") from error
    for number, line in enumerate(text.splitlines(), 1):
        bare = _QUOTED_OR_COMMENT.sub("", line)
        if bare.count(".") > DEEPEST or bare.count("[") + bare.count("{") > DEEPEST:
            raise ConfigError(f"{path}, line {number}: nested too deeply. {FORM}")
    return text


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_bounded_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {str(error).rstrip('.')}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply. {FORM}") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise ConfigError(f"{path} is not valid TOML: a number has too many digits.") from error


def nearest_keys(name: str) -> list[str]:
    """The keys that were likely meant: those of that name or its synonym in any section, or alike in this section."""
    section, _, key = name.rpartition(".")
    key = SYNONYMS.get(key.lower(), key)
    if f"{section}.{key}" in KEYS:
        return [f"{section}.{key}"]
    if section in SECTIONS:
        alike = difflib.get_close_matches(key, SECTIONS[section].model_fields, n=1)
        near = [f"{section}.{found}" for found in alike]
    else:
        near = difflib.get_close_matches(name, KEYS, n=1) if section else []
    near = near or [known for known in KEYS if known.endswith(f".{key}")]
    if not near and not section:
        near = [known for known in KEYS if known.rpartition(".")[2] in difflib.get_close_matches(key, _NAMES, n=1)]
    return near


def unknown_key(name: str, source: object) -> str:
    """The sentence for a key that does not exist, with the nearest one that does."""
    if name in SECTIONS:
        return f"{name} ({source}) is a section, not a value. Write [{name}], and its keys below."
    name = name if len(name) <= 64 else name[:61] + "..."
    near = [repr(key) for key in nearest_keys(name)[:3]]
    hint = f"Did you mean {' or '.join(near)}?" if near else "`fastmpl train --help-all` lists every key."
    return f"unknown key {name!r} ({source}). {hint}"


def _plain(value: Any) -> Any:
    """A number as Python's own: a program may compute an override with numpy, whose numbers a strict type refuses."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys of a nested mapping; a dotted key of the mapping itself is kept as it is."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and "." not in name:
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def _drop_removed(values: Mapping[str, Any], source: Mapping[str, object]) -> dict[str, Any]:
    """`values` without removed keys at their last default. Raises ConfigError for one with another value."""
    removed = {name for name in values if name in REMOVED and name not in KEYS}
    for name in removed:
        value, default = values[name], REMOVED[name]
        if (list(value) if isinstance(value, tuple) else value) != default:
            raise ConfigError(
                f"{name} = {toml(value)} ({source[name]}): this key was removed, and fastmpl does what "
                f"{toml(default)} did. Delete the key."
            )
    return {name: value for name, value in values.items() if name not in removed}


def build(values: Mapping[str, Any], source: Mapping[str, object]) -> Config:
    """A Config from dotted keys; `source` says where each comes from. Raises ConfigError."""
    values = _drop_removed(values, source)
    unknown = [unknown_key(name, source[name]) for name in values if name not in KEYS]
    if unknown:
        raise ConfigError("\n".join(unknown[:SHOWN]))
    if values.get("student.pretrained") or values.get("teacher.pretrained"):
        values = OPEN | values
    tree: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, key = name.split(".")
        tree.setdefault(section, {})[key] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        sentences: dict[str, None] = {}  # in order, each once: both items of a pair may be wrong
        for detail in error.errors(include_url=False, include_context=False):
            name = ".".join(str(part) for part in detail["loc"][:2])
            wrong = f"{name} = {toml(values[name])} ({source[name]}) cannot be used. Expected {allowed_by(KEYS[name])}."
            sentences[wrong] = None
        raise ConfigError("\n".join(list(sentences)[:SHOWN])) from error


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a TOML file, with `overrides` over it.

    overrides: dotted (`{"student.lr": 0.1}`) or nested (`{"student": {"lr": 0.1}}`). Paths are expanded; a relative path
    of the file is looked for here, and then beside the file.
    Raises ConfigError, one sentence a mistake: a file that cannot be read, malformed TOML, unknown keys, values of a
    wrong type or out of bounds, and keys that do not go together.
    """
    path = Path(path)
    file = resolve_paths(_flatten(_read_toml(path)), path)
    over = {
        key: expand_path(value, key) if key in PATHS and isinstance(value, str) else _plain(value)
        for key, value in _flatten(overrides or {}).items()
    }
    return build(file | over, dict.fromkeys(file, path) | dict.fromkeys(over, COMMAND_LINE))


def to_toml(config: Config) -> str:
    """Every key of `config`, in the order of its sections."""
    return tomli_w.dumps(config.model_dump(mode="json"))


def save(config: Config, path: str | Path) -> Path:
    """Writes every key of `config`, so that `load(path) == config`; gives the path."""
    path = Path(path)
    path.write_text(to_toml(config), encoding="utf-8")
    return path


def write_new(path: Path, text: str) -> None:
    """Writes a configuration to a file that is not there yet. Raises ConfigError where it is, StorageError otherwise."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already. Remove it, or name another file by --output.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}. Name another file by --output.") from error


def difference(a: Config, b: Config) -> list[str]:
    """The dotted keys whose values differ, in the order of the sections."""
    left, right = _flatten(a.model_dump()), _flatten(b.model_dump())
    return [name for name in KEYS if left[name] != right[name]]
