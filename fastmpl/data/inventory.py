"""The account of a data set: how many entries its root has, and what became of each of them.

An entry is a file, a folder that is not looked into, a member of a tar, a record of a TFRecord file or a line of a list.
Every entry is an image that is used, a helper (a shard, a label, a list), or left out for a reason that is told.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

NAMED: Final = 10  # entries of one reason that are named; further ones are counted


class Problem(NamedTuple):
    """An entry that is left out (`used` False), or one that is used though something about it is odd.

    `count` entries have this reason, and `file` is the first of them.
    """

    file: str
    reason: str
    used: bool = False
    count: int = 1  # type: ignore[assignment]  # hides tuple.count, which is not needed


class Inventory(NamedTuple):
    """Entries of a root: `entries` in all, of which `helpers` are used, but not as images."""

    entries: int
    helpers: int = 0


def add_inventories(parts: Iterable[Inventory]) -> Inventory:
    """The account of several parts together."""
    parts = tuple(parts)
    return Inventory(sum(part.entries for part in parts), sum(part.helpers for part in parts))


def fold_problems(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The first NAMED problems of each reason as they are, and one that counts the others of that reason."""
    named: dict[tuple[str, bool], int] = {}
    kept: list[Problem] = []
    more: dict[tuple[str, bool], Problem] = {}
    for problem in problems:
        kind = problem.reason, problem.used
        named[kind] = named.get(kind, 0) + 1
        if named[kind] <= NAMED:
            kept.append(problem)
        elif kind in more:
            more[kind] = more[kind]._replace(count=more[kind].count + problem.count)
        else:
            more[kind] = problem
    return (*kept, *more.values())


def count_left_out(problems: Iterable[Problem]) -> int:
    """The number of entries that are left out."""
    return sum(problem.count for problem in problems if not problem.used)


def _count_reasons(problems: Iterable[Problem]) -> dict[str, int]:
    """The number of entries that are left out for each reason; damaged files, whose reasons differ, have one."""
    counts: dict[str, int] = {}
    for problem in problems:
        if not problem.used:
            reason = "damaged" if problem.reason.startswith("damaged") else problem.reason
            counts[reason] = counts.get(reason, 0) + problem.count
    return counts


def account_line(inventory: Inventory, images: int, problems: Iterable[Problem]) -> str:
    """The account in words: counts that add up, and how many entries are left out for each reason."""
    reasons = _count_reasons(problems)
    said = [f"{inventory.entries:,} entries: {images:,} images"]
    said += [f"{inventory.helpers:,} that hold images, labels or lists"] * bool(inventory.helpers)
    why = "; ".join(f"{count:,}: {reason}" for reason, count in sorted(reasons.items(), key=lambda one: -one[1]))
    return ", ".join([*said, f"{sum(reasons.values()):,} left out"]) + (f" ({why})" if why else "")
