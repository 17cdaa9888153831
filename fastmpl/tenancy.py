"""A run's folder belongs to one run at a time, and to one configuration for good."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fastmpl import checkpoint
from fastmpl.config import Config, difference, load, save
from fastmpl.errors import ConfigError
from fastmpl.lifecycle import claimed, write_status

# May differ between a run and its continuation: they change neither the data nor the arithmetic.
HARMLESS: Final = {
    *("run.output", "run.log_every", "run.evaluate_every", "run.checkpoint_every", "run.keep"),
    *("system.threads", "system.timeout"),
}


@contextmanager
def taken(folder: Path, config: Config, resume: str) -> Iterator[None]:
    """Holds the run's folder for this run, as the first rank does for all."""
    if resume == "never" and folder.exists():
        folder.rename(_free_name(folder))
    with claimed(folder):
        _accept(folder, config)
        save(config, folder / "config.toml")
        write_status(folder, "running", 0)
        yield


def _accept(folder: Path, config: Config) -> None:
    """Refuses a folder that holds a run with other settings, naming them."""
    old = folder / "config.toml"
    if not old.is_file() or not checkpoint.steps(folder / "checkpoints"):
        return
    differing = [key for key in difference(load(old), config) if key not in HARMLESS]
    if differing:
        raise ConfigError(
            f"{folder} holds a run with other settings ({', '.join(differing)}). "
            "Use another run.name, or --resume never to start over."
        )


def _free_name(folder: Path) -> Path:
    number = 1
    while (candidate := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return candidate
