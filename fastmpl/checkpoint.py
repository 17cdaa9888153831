"""Checkpoints that are whole or not there, and that run nothing when they are read.

A checkpoint is a directory `step-N`. Each rank's tensors (safetensors) and its facts (JSON) are written into
`step-N.tmp-PID`, the manifest with every file's size and SHA-256 last, then the directory is renamed. Without a valid
manifest it is no checkpoint, and the newest valid one wins: no file names "the latest".
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from fastmpl.errors import StorageError

SCHEMA = 1
TENSORS, FACTS, MANIFEST = "rank-0.safetensors", "facts.json", "manifest.json"
LARGEST_JSON = 16 << 20  # bytes of a manifest or of facts that a reader looks at
_NAME = re.compile(r"step-(\d{1,12})")


class Checkpoint(NamedTuple):
    """What one step of a run continues from."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes `checkpoint` under `folder` so that a kill at any moment leaves the one before it valid.

    Raises StorageError where the disk is full or the folder cannot be written; what was half written is removed.
    """
    final = folder / f"step-{checkpoint.step}"
    draft = folder / f"{final.name}.tmp-{os.getpid()}"
    contents = {
        # channels-last weights are strided, and the format holds dense tensors alone
        TENSORS: safetensors.torch.save(
            {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
        ),
        FACTS: json.dumps(checkpoint.facts, indent=1).encode(),
    }
    files = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    manifest = {"schema": SCHEMA, "step": checkpoint.step, "ranks": 1, "files": files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        for name, data in contents.items():
            _write(draft / name, data)
        _write(draft / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync(draft)
        if final.exists():  # the same step again, after a resume: the old one is equal
            shutil.rmtree(final)
        draft.rename(final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise _explained(error, final, sum(map(len, contents.values()))) from error
    return final


def steps(folder: Path) -> list[int]:
    """The steps of what looks like a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def newest(folder: Path, complain: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint; each newer one that is not valid is named to `complain`, with its fault."""
    for step in steps(folder):
        try:
            return read(folder / f"step-{step}")
        except StorageError as error:
            complain(f"{error} The one before it is used.")
    return None


def read(path: Path) -> Checkpoint:
    """The checkpoint of that directory. Raises StorageError, naming the file that is missing or altered."""
    manifest = _json(path / MANIFEST)
    files = manifest.get("files")
    if manifest.get("schema") != SCHEMA:
        raise StorageError(f"{path} has schema {manifest.get('schema')!r}; this version reads {SCHEMA}.")
    if not isinstance(files, Mapping) or set(files) != {TENSORS, FACTS}:
        raise StorageError(f"{path / MANIFEST} lists other files than a checkpoint has.")
    for name, expected in files.items():
        _verify(path / name, expected)
    try:
        tensors = safetensors.torch.load((path / TENSORS).read_bytes())
    except safetensors.SafetensorError as error:
        raise StorageError(f"{path / TENSORS} is not a valid file of tensors: {error}.") from error
    return Checkpoint(int(manifest["step"]), tensors, _json(path / FACTS))


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Removes all but the newest `keep` checkpoints and the best; and what killed runs left half written."""
    for step in steps(folder)[keep:]:
        if step != best:
            shutil.rmtree(folder / f"step-{step}", ignore_errors=True)
    for draft in folder.glob("step-*.tmp-*"):
        shutil.rmtree(draft, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _json(path: Path) -> dict[str, Any]:
    if not _regular(path):
        raise StorageError(f"{path} is missing.")
    if path.stat().st_size > LARGEST_JSON:
        raise StorageError(f"{path} is larger than {LARGEST_JSON} bytes.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is not valid JSON.") from error
    if not isinstance(content, dict):
        raise StorageError(f"{path} holds no JSON object.")
    return content


def _verify(path: Path, expected: object) -> None:
    if not _regular(path):
        raise StorageError(f"{path} is missing.")
    if not isinstance(expected, Mapping) or path.stat().st_size != expected.get("size"):
        raise StorageError(f"{path} has {path.stat().st_size} bytes, and not those that its manifest says.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected.get("sha256"):
        raise StorageError(f"{path} was altered: its checksum is not that of its manifest.")


def _explained(error: OSError, path: Path, size: int) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = 0
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(path.parent).free
        missing = max(size - free, 0) / 1e6
        return StorageError(
            f"{path} needs {size / 1e6:.1f} MB and the disk has {free / 1e6:.1f}: free {missing:.1f} MB."
        )
    return StorageError(f"{path} cannot be written: {error.strerror}.")
