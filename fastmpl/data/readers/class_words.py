"""From the word or the number that a source gives each image to a class: one rule for lists, tars and TFRecord files.

A word is a class's name. An integer of a TFRecord file is a class's position. A word of digits may be either: where a
file classes.txt names the classes, it is what all words of the source can be. Where they could be both and would mean
different classes, the source is refused, except for a pack, whose words are names.

classes.txt has one name a line. Without it the words are the names, sorted (by their value where all are numbers).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.classes import check_class_names, closest_name, normal_name, remarks_on_names
from fastmpl.data.dataset import Labels
from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.text import read_lines

CLASSES: Final = "classes.txt"
PACK_PLAN: Final = "plan.json"  # `fastmpl pack` writes it: words are names
BACKGROUND: Final = ("background", "__background__", "unused", "dummy")  # names of a class 0 that no image has
_LABELLED: Final = ("labelled", "trusted", "test")


class PartWords(NamedTuple):
    """The word of each image of a part, whether it is an integer, and how a message calls an image and its place."""

    words: Sequence[str]
    numbered: NDArray[np.bool_] | None  # None: all are words
    name_image: Callable[[int], str]


class LabelledParts(NamedTuple):
    """The classes in the order of their numbers, the label of each image by part, and sentences for the user."""

    classes: tuple[str, ...]
    labels: dict[str, Labels]
    remarks: tuple[str, ...]


class _Words(NamedTuple):
    """The different words of all parts, in their normal form, and which of them are integers."""

    all: dict[str, str]  # raw word -> normal form
    labelled: frozenset[str]  # normal forms of the labelled part
    numbered: bool


def _collect(root: Path, parts: Mapping[str, PartWords], hint: str) -> _Words:
    """Raises DataError for an image without a word, and where words and integers are mixed."""
    normal: dict[str, str] = {}
    kinds: set[bool] = set()
    for name in _LABELLED:
        part = parts[name]
        for word in dict.fromkeys(part.words):
            normal[word] = normal_name(word)
            if not normal[word]:
                image = part.name_image(list(part.words).index(word))
                raise DataError(f"{printable(image)} has no class. Expected {hint}.")
        if len(part.words):
            kinds |= {False} if part.numbered is None else set(np.unique(part.numbered).tolist())
    if len(kinds) > 1:
        raise DataError(
            f"{printable(root)}: some images have the class as a number, others as a name. Use one for all."
        )
    labelled = frozenset(normal[word] for word in dict.fromkeys(parts["labelled"].words))
    return _Words(normal, labelled, True in kinds)


def read_class_names(root: Path) -> tuple[str, ...] | None:
    """The names in classes.txt; None where there is none. Raises DataError for an empty line or a name that is none."""
    path = root / CLASSES
    if not path.is_file():
        return None
    names = read_lines(path)
    while names and not names[-1].strip():
        names.pop()
    empty = next((number for number, name in enumerate(names, 1) if not name.strip()), None)
    if empty is not None:
        raise DataError(
            f"{printable(path)}: line {empty} is empty, and line N + 1 names class N. Name the class, or remove the line."
        )
    if len(names) < 2:
        raise DataError(f"{printable(path)} names {len(names)} classes, and a classifier needs two or more.")
    return check_class_names(names, printable(path))


def _as_numbers(words: Iterable[str]) -> dict[str, int] | None:
    """The integers that words are; None where one is none."""
    words = list(words)
    return {word: int(word) for word in words} if all(word.removeprefix("-").isdecimal() for word in words) else None


def _find_image(parts: Mapping[str, PartWords], word: str) -> str:
    """The first image with a word, which is in its normal form."""
    for part in (parts[name] for name in _LABELLED):
        raw = next((raw for raw in dict.fromkeys(part.words) if normal_name(raw) == word), None)
        if raw is not None:
            return printable(part.name_image(list(part.words).index(raw)))
    raise AssertionError(word)


def _require_no_negative(parts: Mapping[str, PartWords], numbers: Mapping[str, int]) -> None:
    word = min(numbers, key=numbers.__getitem__)
    if numbers[word] < 0:
        raise DataError(
            f"{_find_image(parts, word)} has the label {numbers[word]}, and classes count from 0. Put images without a "
            "class into the part unlabelled."
        )


class _Numbering(NamedTuple):
    """Names in the order of their numbers, and the number of each word."""

    names: tuple[str, ...]
    number: Mapping[str, int]
    remarks: tuple[str, ...] = ()


def _by_position(
    root: Path, parts: Mapping[str, PartWords], names: tuple[str, ...], numbers: Mapping[str, int]
) -> _Numbering:
    """Numbers that count from 0, from 1, or from 1 with a name for a class 0 that no image has."""
    low, high = min(numbers.values()), max(numbers.values())
    file = printable(root / CLASSES)
    if low >= 1 and names[0].lower() in BACKGROUND and high < len(names):
        remark = f"no image is of class 0, {names[0]!r} of {file}, which is left out"
        return _Numbering(names[1:], {word: number - 1 for word, number in numbers.items()}, (remark,))
    if low >= 1 and high == len(names) and set(numbers.values()) == set(range(1, len(names) + 1)):
        remark = f"the labels count from 1, so 1 is {names[0]!r}, the first line of {file}"
        return _Numbering(names, {word: number - 1 for word, number in numbers.items()}, (remark,))
    if high >= len(names):
        raise DataError(
            f"{file} names {len(names)} classes, numbered 0 to {len(names) - 1}, and "
            f"{_find_image(parts, max(numbers, key=numbers.__getitem__))} has the label {high}. "
            "Name every class; where the labels count from 1, write a first line `background`."
        )
    return _Numbering(names, numbers)


def _decide(root: Path, parts: Mapping[str, PartWords], names: tuple[str, ...], words: _Words) -> _Numbering:
    """What the words mean where classes.txt names the classes."""
    number_of = {name: number for number, name in enumerate(names)}
    different = dict.fromkeys(words.all.values())
    numbers = _as_numbers(different)
    unknown = [word for word in different if word not in number_of]
    if words.numbered or (numbers is not None and unknown):
        assert numbers is not None
        _require_no_negative(parts, numbers)
        return _by_position(root, parts, names, numbers)
    if unknown:
        raise DataError(
            f"{_find_image(parts, unknown[0])} has the class {unknown[0]!r}, which {CLASSES} does not name. "
            + closest_name(unknown[0], names)
        )
    both = numbers is not None and all(0 <= number < len(names) for number in numbers.values())
    if both and numbers != {word: number_of[word] for word in different} and not (root / PACK_PLAN).is_file():
        raise DataError(
            f"{printable(root / CLASSES)}: the words of the images, such as {next(iter(different))!r}, could be names or "
            "line numbers of it, which are different classes. Remove it if they are names; otherwise use names that are "
            "no numbers."
        )
    return _Numbering(names, number_of)


def _without_list(root: Path, parts: Mapping[str, PartWords], words: _Words) -> _Numbering:
    """The words are the names."""
    numbers = _as_numbers(words.labelled)
    if numbers is not None:
        _require_no_negative(parts, numbers)
    in_order = sorted(words.labelled, key=lambda word: ((numbers or {}).get(word, 0), word))
    names = check_class_names(in_order, printable(root))
    if len(names) < 2:
        raise DataError(f"{printable(root)} has one class ({names[0]}), and a classifier needs two or more.")
    number_of = {name: number for number, name in enumerate(names)}
    unknown = next((word for word in words.all.values() if word not in number_of), None)
    if unknown is not None:
        raise DataError(
            f"{_find_image(parts, unknown)} has the class {unknown!r}, which no labelled image has. "
            + closest_name(unknown, names)
        )
    return _Numbering(names, number_of)


def _require_all(root: Path, parts: Mapping[str, PartWords], found: _Numbering, words: _Words) -> None:
    """Raises DataError for a class without a labelled image."""
    there = {found.number[word] for word in words.labelled}
    absent = [name for number, name in enumerate(found.names) if number not in there]
    if absent:
        from_one = " Where the labels count from 1, write a first line `background`." if 0 not in there else ""
        raise DataError(
            f"{printable(root / CLASSES)} names {absent[0]!r}, and no labelled image is of that class. Add images, or "
            f"remove the class.{from_one}"
        )


def label_parts(root: Path, parts: Mapping[str, PartWords], hint: str) -> LabelledParts:
    """The classes of a source, and the labels int64 [n] of its parts labelled, trusted and test.

    `hint`: what a message says is expected of an image without a class. Raises DataError where words are missing,
    unknown or ambiguous, or where names break the rule of `fastmpl.data.classes`.
    """
    if not len(parts["labelled"].words):
        raise DataError(f"{printable(root)} has no labelled images.")
    words, listed = _collect(root, parts, hint), read_class_names(root)
    found = _without_list(root, parts, words) if listed is None else _decide(root, parts, listed, words)
    _require_all(root, parts, found, words)
    number = {raw: found.number[word] for raw, word in words.all.items()}
    labels = {name: np.array([number[word] for word in parts[name].words], dtype=np.int64) for name in _LABELLED}
    return LabelledParts(found.names, labels, (*found.remarks, *remarks_on_names(found.names)))
