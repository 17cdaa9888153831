"""Class names: what a name may be, and how two lists of names are brought into one order.

A class is known by its name. Names are compared after `normal_name`; they are unique and printable. Whoever hands class
numbers over (a source, a checkpoint, a store, a table of probabilities) also hands the names over, and whoever takes
them maps them by `class_order`, never by position.
"""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.errors import DataError

SHOWN: Final = 5  # names in a message
_BETWEEN_LABELS: Final = (",", ";", "|", "+", "&", " ")  # of an image with several labels
_UNPRINTABLE: Final = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, surrogate; line and paragraph separators


def normal_name(name: str) -> str:
    """The one form in which names are compared: Unicode's composed form (NFC), without spaces at either end."""
    return unicodedata.normalize("NFC", name).strip()


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more


def _same_numbers(names: Sequence[str]) -> list[str]:
    """Two or more names that are one number, such as 1 and 01."""
    by_number: dict[int, list[str]] = {}
    for name in names:
        if name.isdecimal():
            by_number.setdefault(int(name), []).append(name)
    return next((same for same in by_number.values() if len(same) > 1), [])


def check_class_names(names: Iterable[str], source: str) -> tuple[str, ...]:
    """The names in their normal form and their order. `source` is the subject of a message: a file, a folder, a key.

    Raises DataError where a name is empty, cannot be printed, comes twice, or is another one's number with more zeros.
    """
    normal = tuple(normal_name(name) for name in names)
    for number, name in enumerate(normal):
        if not name:
            raise DataError(f"{source}: class {number} has no name. Give every class a name.")
        odd = next((letter for letter in name if unicodedata.category(letter) in _UNPRINTABLE), None)
        if odd is not None:
            raise DataError(
                f"{source}: the class name {name!a} holds the character U+{ord(odd):04X}, which cannot be printed. "
                "Rename the class."
            )
    twice = [name for name, count in Counter(normal).items() if count > 1]
    if twice:
        raise DataError(f"{source}: two classes are called {_list_names(twice)}. Give every class a name of its own.")
    if same := _same_numbers(normal):
        raise DataError(
            f"{source}: the classes {_list_names(same)} are one number, written in different ways. Write it in one way."
        )
    return normal


def similar_names(names: Sequence[str]) -> list[str]:
    """A sentence for each group of names that differ in upper and lower case alone, which may be one class by mistake."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.casefold(), []).append(name)
    return [
        f"the classes {_list_names(group)} differ only in upper and lower case, and are learned as {len(group)} classes"
        for group in groups.values()
        if len(group) > 1
    ]


def _is_of_several(name: str, all_names: Container[str]) -> bool:
    """Whether `name` is a list of two or more other names, as a table of several labels an image has them."""
    for separator in _BETWEEN_LABELS:
        parts = [part.strip("'\"[](){} ") for part in name.split(separator)]
        if len(parts) > 1 and all(part in all_names for part in parts):
            return True
    return False


def remarks_on_names(names: Sequence[str]) -> list[str]:
    """Sentences on names that may not be what their user thinks: in two spellings, or of several classes at once."""
    known = frozenset(names)
    several = [name for name in names if _is_of_several(name, known)]
    said = (
        "the class {} is a list of other classes" if len(several) == 1 else "the classes {} are lists of other classes"
    )
    remarks = [f"{said.format(_list_names(several))}: an image has one class here, and each list is learned as a class"]
    return similar_names(names) + (remarks if several else [])


def closest_name(name: str, names: Sequence[str]) -> str:
    """A hint that ends a message about the unknown class `name`: the nearest of `names`, or all of a few."""
    near = difflib.get_close_matches(normal_name(name), names, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"The classes are {_list_names(names)}."


def class_order(have: Sequence[str], wanted: Sequence[str], what: str) -> NDArray[np.int64]:
    """Positions [K] of the names `wanted` among those that `what` has: have[order[k]] is wanted[k].

    `values[..., order]` therefore brings columns of `what` into the order of `wanted`. Raises DataError, whose subject
    is `what`, where a name is missing or one too many, or where either list breaks the rule of `check_class_names`.
    """
    theirs, ours = check_class_names(have, what), check_class_names(wanted, "the data's classes")
    place = {name: number for number, name in enumerate(theirs)}
    missing = [name for name in ours if name not in place]
    extra = [name for name in theirs if name not in set(ours)]
    if missing or extra:
        parts = [f"it lacks {_list_names(missing)}"] * bool(missing) + [f"it adds {_list_names(extra)}"] * bool(extra)
        raise DataError(
            f"{what} has other classes than the data: {' and '.join(parts)}. Use one with the same {len(ours)} class "
            "names, in any order."
        )
    return np.array([place[name] for name in ours], dtype=np.int64)
