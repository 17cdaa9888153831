"""How old each record is: `python -m benchmarks.tables --ages`.

A record names the commit whose code made it. Here it is compared with the code as it is now: how many of the files that its
command imports have changed since. A changed file need not change the numbers; a record none of whose files has changed is
as good as new.
"""

import ast
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.environment import ROOT, run_git
from benchmarks.records import RESULTS, Record, load

PACKAGES: Final = {"benchmarks": ROOT, "fastmpl": ROOT, "fastmpl_kernels": ROOT / "kernels"}
NATIVE: Final = ROOT / "kernels" / "csrc"  # what fastmpl_kernels.library loads is built of these


class Age(NamedTuple):
    """Of one record."""

    record: str
    machine: str
    commit: str
    dirty: str  # whether the code differed from that commit
    created: str
    files: int  # that its command imports
    changed: list[str] | None  # of these, since the commit; None where the commit is not known here

    def __str__(self) -> str:
        if self.changed is None:
            state = "its commit is not in this repository"
        else:
            state = f"{len(self.changed)} of {self.files} files changed since"
        dirty = " (uncommitted changes)" if self.dirty == "True" else ""
        return f"{self.record:28} {self.created}  {self.commit[:9]}{dirty}  {state:36} {self.machine}"


@cache
def imported_by(path: Path) -> frozenset[Path]:
    """The files of this repository that a file names in its imports, at any depth of its code."""
    found = set[Path]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {file for alias in node.names for file in _files_of(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= set(_files_of(node.module))
            found |= {file for alias in node.names for file in _files_of(f"{node.module}.{alias.name}")}
    return frozenset(found)


def _files_of(module: str) -> Iterator[Path]:
    """The file of a module of ours, and those of the packages it is in."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return
    for end in range(1, len(parts) + 1):
        place = PACKAGES[parts[0]].joinpath(*parts[:end])
        yield from (file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file())


def files_behind(module: str) -> set[Path]:
    """All files of ours that `python -m module` may run."""
    found, waiting = set[Path](), list(_files_of(module))
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += imported_by(path)
    if any(path.name == "library.py" for path in found):
        found |= set(NATIVE.iterdir())
    return found


def age(record: Record) -> Age:
    words = shlex.split(record.command)
    files = files_behind(words[words.index("-m") + 1]) if "-m" in words else set[Path]()
    there = record.environment
    known = bool(run_git("rev-parse", "--verify", "--quiet", f"{record.commit}^{{commit}}"))
    changed = run_git("diff", "--name-only", record.commit, "--", *map(str, sorted(files))) if known and files else ""
    return Age(
        record.name,
        str(there["gpu"] or there["cpu"]),
        record.commit,
        str(there["dirty"]),
        record.created[:10],
        len(files),
        changed.splitlines() if known else None,
    )


def ages(results: Path = RESULTS) -> list[Age]:
    """Of every record, by name."""
    return [age(load(path.stem, results)) for path in sorted(results.glob("*.json"))]
