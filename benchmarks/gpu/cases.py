"""What a group of rows is made of. Imports no torch: the process that watches the groups must outlive any of them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from benchmarks.records import Row

if TYPE_CHECKING:
    import torch

Part = Literal["correct", "speed"]
Device = Literal["cuda", "imitated"]
Status = Literal["passed", "failed", "missing", "measured"]
OURS: Final = ("benchmarks", "fastmpl", "fastmpl_kernels")  # packages that are never "missing", only wrong


class MissingError(Exception):
    """A case needs something that this machine lacks; the message names it, and becomes the row's `why`."""


class Setting(NamedTuple):
    """What every case is told."""

    kind: Device
    out: Path  # for traces

    @property
    def device(self) -> "torch.device":
        import torch

        return torch.device("cuda" if self.kind == "cuda" else "cpu")

    @property
    def is_imitated(self) -> bool:
        """Whether the CPU stands in for the GPU: sizes are small then, and no time means anything."""
        return self.kind == "imitated"


class Case(NamedTuple):
    """One row: `run` gives its columns. "passed" among them judges the row; without it the row is a measurement.

    A case that raises has failed, one that raises MissingError or lacks a package is missing. `seconds`: after which it
    is given up; on a fresh machine the first call of a kernel compiles it.
    """

    what: str
    run: Callable[[], Row]
    seconds: float = 60.0


class Group(NamedTuple):
    """Rows that share a process. `module` has a function `cases(setting)` that gives them in order."""

    name: str
    module: str
    seconds: float  # after which the rows that are left are not reached


Cases = list[Case]
