"""The folder of a run: its lock, its configuration, and its status.

A folder belongs to one process at a time and to one configuration for good. STATUS.json tells how a run ended; the exit
code of a launcher does not. A start that fails leaves no folder behind, and a finished run as it was.
"""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal

from fastmpl.config import Config, to_toml
from fastmpl.errors import UNEXPECTED, FastMPLError, FolderLostError, StorageError
from fastmpl.run.resuming import asked_step, check_settings
from fastmpl.untrusted import read_json_object

State = Literal["running", "done", "interrupted", "failed"]
CONFIG, STATUS, LOCK = "config.toml", "STATUS.json", ".lock"
LONGEST_HOLDER: Final = 300  # bytes
OWNED: Final = (CONFIG, STATUS)  # files that a start writes


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Locks the run's folder for the block. Raises StorageError with the process and host that hold it already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+b", buffering=0)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}. Set run.output to a folder of yours."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = (lock.read(LONGEST_HOLDER) or b"").decode("utf-8", "replace").strip() or "another process"
            raise StorageError(
                f"{folder} is in use by {holder}. Wait for it, stop it, or use another run.name."
            ) from error
        with suppress(OSError):  # a full disk: the lock holds without its words
            lock.truncate(0)
            lock.write(_this_process().encode())
        yield


def require_own(folder: Path) -> None:
    """Raises FolderLostError if the folder that this process locked was removed, moved, or given to another run since."""
    try:
        holder = (folder / LOCK).read_bytes()[:LONGEST_HOLDER].decode("utf-8", "replace").strip()
    except FileNotFoundError as error:
        raise FolderLostError(
            f"{folder} was removed or moved while its run was training, which has no place to save. Start it again."
        ) from error
    if holder not in ("", _this_process()):
        raise FolderLostError(f"{folder} was removed while its run was training, and is in use by {holder} now.")


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def read_status(folder: Path) -> dict[str, Any]:
    """What STATUS.json holds; empty if there is none that can be read."""
    try:
        return read_json_object(folder / STATUS)
    except (OSError, ValueError):
        return {}


def write_status(folder: Path, state: State, step: int, sentence: str = "", code: int = 0) -> None:
    """Replaces STATUS.json as a whole. step: the last one that is saved, or the last one taken if the run ended.

    code: the exit code of a run that did not end as it should, because launchers return others.
    """
    status: dict[str, object] = {"state": state, "step": step, "process": os.getpid(), "host": socket.gethostname()}
    status["message"] = sentence
    if code:
        status["code"] = code
    if notes := _notes_of_this_process(folder):
        status["notes"] = notes
    _write_status_file(folder, json.dumps(status, indent=1) + "\n")


def _write_status_file(folder: Path, content: str) -> None:
    """Replaces STATUS.json. On a full disk it is written in place: its block is there already, and it must not lie."""
    try:
        replace_file(folder / STATUS, content)
    except StorageError:
        try:
            with (folder / STATUS).open("r+b") as file:
                file.write(content.encode())
                file.truncate()
        except OSError as error:
            raise StorageError(f"{folder / STATUS} cannot be written: {error.strerror}.") from error


def add_note(folder: Path, sentence: str) -> None:
    """Adds a sentence to `notes` of STATUS.json: how this process trains otherwise than it was asked to."""
    status = read_status(folder)
    status["notes"] = [*_notes_of_this_process(folder), sentence]
    replace_file(folder / STATUS, json.dumps(status, indent=1) + "\n")


def _notes_of_this_process(folder: Path) -> list[str]:
    """An earlier process may have run on another machine: its notes end with it."""
    status = read_status(folder)
    same = (status.get("process"), status.get("host")) == (os.getpid(), socket.gethostname())
    notes = status.get("notes") if same else None
    return [str(note) for note in notes] if isinstance(notes, list) else []


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file as a whole: a kill leaves the old one or the new one. Raises StorageError if it cannot be written."""
    draft = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error.strerror}.") from error


def exit_code_of(error: BaseException) -> int:
    """The exit code that the command line gives an error."""
    return error.exit_code if isinstance(error, FastMPLError) else UNEXPECTED


class Claim:
    """A locked folder in which a run is about to start; until `begin`, the start can be undone."""

    def __init__(self, folder: Path, remarks: list[str]) -> None:
        """remarks: sentences for the user on how the settings differ from those of the folder's run."""
        self.folder, self.remarks = folder, remarks
        self.has_begun = False

    def begin(self, step: int) -> None:
        """Training begins after `step`, the last one saved: from now on what happens is the run's own fate."""
        self.has_begun = True
        write_status(self.folder, "running", step)


@contextmanager
def claim_folder(folder: Path, config: Config, resume: str, *, force: bool = False) -> Iterator[Claim]:
    """Locks the run's folder, and writes its configuration and status; rank 0 does it for all ranks.

    Raises ConfigError if `resume` names no checkpoint, or the folder's run has other settings. If the block raises before
    `Claim.begin`, a new folder is removed, one that was moved comes back, and a finished run keeps its files.
    """
    step = asked_step(folder, resume)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    old = None
    with ExitStack() as held:
        held.enter_context(lock_folder(folder))
        try:
            if resume == "never" and not missing:  # only once it is locked: a running run is not moved
                old = folder.rename(_free_name(folder, "old"))
                held.enter_context(lock_folder(folder))
            kept_aside = [f"The run that was in {folder} is kept in {old}."] if old is not None else []
            claim = Claim(folder, kept_aside + check_settings(folder, config, step, force=force))
            kept = {name: (folder / name).read_bytes() for name in OWNED if (folder / name).is_file()}
            _write_config(config, folder)
            write_status(folder, "running", step)
        except BaseException:
            _remove_new(folder, missing, old)
            raise
        try:
            yield claim
        except BaseException as error:
            if not claim.has_begun:
                if missing or old is not None:
                    _remove_new(folder, missing, old)
                else:
                    _put_back(folder, kept, step, str(error), exit_code_of(error))
            raise


def _write_config(config: Config, folder: Path) -> None:
    replace_file(folder / CONFIG, to_toml(config))


def _remove_new(folder: Path, missing: list[Path], old: Path | None) -> None:
    """Removes what a failed start has made: the folder and its parents, or the new folder in the place of `old`."""
    if missing or old is not None:
        shutil.rmtree(folder, ignore_errors=True)
    if old is not None:
        old.rename(folder)
    for parent in missing[1:]:
        with suppress(OSError):  # another run may be in it by now
            parent.rmdir()


def _put_back(folder: Path, kept: dict[str, bytes], step: int, sentence: str, code: int) -> None:
    """Puts back the files of `kept`; a run that was not finished is marked as failed."""
    for name in OWNED:
        if name in kept:
            replace_file(folder / name, kept[name])
        else:
            (folder / name).unlink(missing_ok=True)
    if STATUS in kept and read_status(folder).get("state") != "done":
        write_status(folder, "failed", step, sentence, code)


def _free_name(folder: Path, word: str) -> Path:
    number = 1
    while (candidate := folder.with_name(f"{folder.name}.{word}-{number}")).exists():
        number += 1
    return candidate
