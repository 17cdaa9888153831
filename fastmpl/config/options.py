"""The options `--section.key value` of the command line, made by tyro from the sections.

Only options that were given are returned, as text: they override the file and are checked as its values are. --help
shows the keys that matter, --help-all also the rare ones.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, make_dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_args, get_origin

import tyro
from pydantic.fields import FieldInfo

from fastmpl.config.load import COMMAND_LINE, KEYS, SECTIONS, nearest_keys, unknown_key
from fastmpl.config.wording import plain, toml
from fastmpl.errors import ConfigError

Verb = TypeVar("Verb")
Given = Mapping[str, Mapping[str, tuple[str, ...]]]


def _items(field: FieldInfo) -> list[Any]:
    """The types of the words that an option takes: one, or those of a pair."""
    if get_origin(field.annotation) is tuple:
        return [plain(item)[0] for item in get_args(field.annotation)]
    return [field.annotation]


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return "{true,false}" if kind is bool else str(kind.__name__).upper()


def _word(value: object) -> str:
    """`value` as it is typed on a command line."""
    return (value or '""') if isinstance(value, str) else toml(value)


def _is_rare(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("rare"))


def _option(field: FieldInfo) -> Any:
    items = _items(field)
    words: Any = tuple[(str,) * len(items)]  # type: ignore[misc]
    default = field.default if len(items) > 1 else (field.default,)
    return Annotated[
        words,
        tyro.conf.arg(
            metavar=" ".join(map(_metavar, items)),
            help=field.description,
            help_behavior_hint=f"(default: {' '.join(map(_word, default))})",
        ),
    ]


def _options(names: Collection[str]) -> Any:
    """A type for tyro: a dictionary of the sections, each a dictionary of those of its keys that are in `names`."""
    sections: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        keys = {key: _option(field) for key, field in section.model_fields.items() if f"{name}.{key}" in names}
        sections[name] = TypedDict(name, keys, total=False)  # type: ignore[operator]
        sections[name].__doc__ = section.__doc__
    return TypedDict("Options", sections)  # type: ignore[operator]


def _options_to_show(arguments: Sequence[str]) -> Collection[str]:
    """The keys that the help shows, or else those that were given: tyro takes a millisecond for each that it knows."""
    if "--help-all" in arguments:
        return KEYS
    if not {"-h", "--help"}.isdisjoint(arguments):
        return [name for name, field in KEYS.items() if not _is_rare(field)]
    return {_option_name(argument) for argument in arguments}


def _option_name(argument: str) -> str:
    return argument.removeprefix("--").partition("=")[0].replace("-", "_")


def _refuse_unknown(arguments: Sequence[str], verb: type[Any]) -> None:
    """Raises ConfigError for an option that does not exist, with the nearest key that does."""
    own = {field.name for field in fields(verb)} | {"help", "help_all"}
    for argument in arguments:
        name = _option_name(argument)
        if not argument.startswith("--") or not name or name in KEYS or name in own:
            continue
        if "." in name:
            raise ConfigError(unknown_key(name, COMMAND_LINE))
        near = [f"--{key}" for key in nearest_keys(name)[:3]]
        near = [f"--{option}" for option in get_close_matches(name, own, n=1)] or near
        hint = f"Did you mean {' or '.join(near)}?" if near else "--help-all lists every option."
        raise ConfigError(f"unknown option {argument.partition('=')[0][:64]!r} ({COMMAND_LINE}). {hint}")


def _convert(kind: Any, word: str) -> Any:
    """`word` as a value of `kind`; as it is where it is none, for the check of the configuration to refuse."""
    if kind is bool:
        return {"true": True, "false": False}.get(word.lower(), word)
    if kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            return word
    return word


def _overrides(given: Given) -> dict[str, Any]:
    """The dotted keys and typed values of the options that were given."""
    values: dict[str, Any] = {}
    for section, keys in given.items():
        for key, words in keys.items():
            name = f"{section}.{key}"
            typed = [_convert(kind, word) for kind, word in zip(_items(KEYS[name]), words, strict=True)]
            values[name] = typed if len(typed) > 1 else typed[0]
    return values


def parse(verb: type[Verb], program: str, arguments: Sequence[str]) -> tuple[Verb, dict[str, Any]]:
    """The verb's own arguments, a dataclass, and overrides for `load`.

    Raises ConfigError for an option that does not exist. Where help is asked for, or the usage is wrong in another way,
    tyro prints it and raises SystemExit (0 or 2).
    """
    _refuse_unknown(arguments, verb)
    options: Any = Annotated[_options(_options_to_show(arguments)), tyro.conf.arg(name="")]
    parsed: Any = tyro.cli(
        make_dataclass("Line", [("options", options)], bases=(verb,), frozen=True, kw_only=True),
        prog=program,
        args=["--help" if argument == "--help-all" else argument for argument in arguments],
        use_underscores=True,
        description=verb.__doc__,
    )
    return parsed, _overrides(parsed.options)


def parse_plain(verb: type[Verb], program: str, arguments: Sequence[str]) -> Verb:
    """The arguments of a verb that has no configuration. tyro prints help and mistakes, and raises SystemExit."""
    return tyro.cli(verb, prog=program, args=list(arguments), use_underscores=True, description=verb.__doc__)
