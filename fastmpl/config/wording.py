"""How values and their bounds are worded in errors and in --help: as they are written in a TOML file."""

from collections.abc import Iterable
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
LONGEST = 60  # characters of a value that are shown


def toml(value: object) -> str:
    """`value` as in a TOML file, cut to one line of moderate length."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(toml(item) for item in value[:LONGEST]) + "]"
    elif isinstance(value, dict):
        text = "{ a table }"
    elif isinstance(value, int) and value.bit_length() > 200:
        text = "a number of many digits"
    elif isinstance(value, str):
        text = '"' + value[:LONGEST].encode("unicode_escape").decode() + '"'
    else:
        text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def one_of(values: Iterable[object]) -> str:
    """`"a", "b" or "c"`."""
    shown = [toml(value) for value in values]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def _range(metadata: Iterable[Any]) -> str:
    low, high = "", ""
    for bound in metadata:
        match bound:
            case FieldInfo():
                return _range(bound.metadata)
            case Ge():
                low = f"from {bound.ge}"
            case Gt():
                low = f"above {bound.gt}"
            case Le():
                high = f"to {bound.le}"
            case Lt():
                high = f"to below {bound.lt}"
    return "".join(f" {part}" for part in (low, high) if part)


def plain(annotation: Any) -> tuple[Any, list[Any]]:
    """The type behind `Annotated[type, ...]`, and its metadata."""
    return (
        (annotation.__origin__, list(annotation.__metadata__))
        if hasattr(annotation, "__metadata__")
        else (annotation, [])
    )


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a key accepts: `a number from 0 to 1`, `"batch" or "group"`, `[an integer from 0 to 16, ...]`."""
    kind, inner = plain(annotation)
    everything = [*inner, *metadata]
    if get_origin(kind) is tuple:
        return "[" + ", ".join(allowed(item) for item in get_args(kind)) + "]"
    if get_args(kind):
        return one_of(get_args(kind))
    patterns = [item.pattern for item in everything if getattr(item, "pattern", None)]
    if patterns:
        return f"a string that matches {patterns[0]}"
    return _WORDS[kind] + _range(everything)


def allowed_by(field: FieldInfo) -> str:
    """What the field of a section accepts."""
    return allowed(field.annotation, field.metadata)
