"""Meta Pseudo Labels and ReducedMPL: correct, cheap teacher-student training on one CPU, one GPU or many."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmpl.run.closing import Results

__version__ = "0.1.0"


def train(
    config: str | Path, overrides: Mapping[str, Any] | None = None, *, resume: str = "auto", quiet: bool = False
) -> "Results":
    """Trains the run of a TOML file, or continues it, as `fastmpl train` does.

    overrides: dotted keys that replace the file's, such as `{"student.lr": 0.1}`. resume: "auto", "never", or the folder of
    a checkpoint. quiet: shows nothing. Raises subclasses of fastmpl.errors.FastMPLError.
    """
    from fastmpl.config import load
    from fastmpl.run import trainer  # torch takes seconds to import

    return trainer.train(load(config, overrides), resume=resume, quiet=quiet)
