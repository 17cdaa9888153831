"""Meta Pseudo Labels and ReducedMPL: correct, cheap teacher-student training on one CPU, one GPU or many."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmpl.commands.trained_run import TrainedRun
    from fastmpl.config import Config
    from fastmpl.run.callbacks import Callback
    from fastmpl.run.closing import Results
    from fastmpl.run.headline import NetworkName

__version__ = "0.1.0"


def train(
    config: "str | Path | Config",
    overrides: Mapping[str, Any] | None = None,
    *,
    resume: str = "auto",
    quiet: bool = False,
    callbacks: "Sequence[Callback]" = (),
) -> "Results":
    """Trains the run of a TOML file or a `Config`, or continues it, as `fastmpl train` does.

    overrides: dotted keys that replace the file's, such as `{"student.lr": 0.1}`; for a file alone. resume: "auto",
    "never", or the folder of a checkpoint. quiet: shows nothing. callbacks: functions to call after steps, evaluations and
    checkpoints; they change no number of the run, and what one raises stops it. Raises subclasses of
    fastmpl.errors.FastMPLError.
    """
    from fastmpl.config import Config, load
    from fastmpl.errors import ConfigError
    from fastmpl.run import trainer  # torch takes seconds to import

    if isinstance(config, Config):
        if overrides:
            raise ConfigError("overrides are for a configuration that is read from a file.")
        return trainer.train(config, resume=resume, quiet=quiet, callbacks=callbacks)
    return trainer.train(load(config, overrides), resume=resume, quiet=quiet, callbacks=callbacks)


def load(run: str | Path, network: "NetworkName | None" = None) -> "TrainedRun":
    """A network of the run in the folder `run`, ready to predict, evaluate and export.

    network: "selected", "average", "last", "finetuned" or "teacher"; None for the one in student.safetensors, of which the
    report's headline speaks. A run that is not finished gives the network of its newest checkpoint. Raises ConfigError
    where there is none.
    """
    from fastmpl.commands import trained_run

    return trained_run.load(run, network)


def __getattr__(name: str) -> Any:
    """`fastmpl.Callback`, which needs torch and is imported when it is asked for."""
    if name == "Callback":
        from fastmpl.run.callbacks import Callback

        return Callback
    raise AttributeError(f"module 'fastmpl' has no attribute {name!r}")
