"""The folder of a run: its lock, its configuration, and its status.

A folder belongs to one process at a time and to one configuration for good. STATUS.json tells how a run ended; the exit
code of a launcher does not.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from fastmpl.config import Config, difference, load, save
from fastmpl.errors import ConfigError, StorageError
from fastmpl.run import checkpoint

State = Literal["running", "done", "interrupted", "failed"]

# These may change when a run is continued, because they change neither the data nor the arithmetic.
HARMLESS: Final = {
    *("run.output", "run.log_every", "run.evaluate_every", "run.checkpoint_every", "run.keep"),
    *("system.threads", "system.timeout"),
}


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Locks the run's folder for the block. Raises StorageError with the process and host that hold it already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}. Set run.output to a folder of yours."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise StorageError(
                f"{folder} is in use by {holder}. Wait for it, stop it, or use another run.name."
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def write_status(folder: Path, state: State, step: int, sentence: str = "") -> None:
    """Replaces STATUS.json as a whole."""
    status = {"state": state, "step": step, "process": os.getpid(), "host": socket.gethostname(), "message": sentence}
    draft = folder / f"STATUS.json.tmp-{os.getpid()}"
    draft.write_text(json.dumps(status, indent=1) + "\n")
    draft.replace(folder / "STATUS.json")


@contextmanager
def claim_folder(folder: Path, config: Config, resume: str) -> Iterator[None]:
    """Locks the run's folder and writes its configuration and status; rank 0 does it for all ranks."""
    if resume == "never" and folder.exists():
        folder.rename(_free_name(folder))
    with lock_folder(folder):
        _check_settings(folder, config)
        save(config, folder / "config.toml")
        write_status(folder, "running", 0)
        yield


def _check_settings(folder: Path, config: Config) -> None:
    """Raises ConfigError that names the settings in which the folder's run differs from `config`."""
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
