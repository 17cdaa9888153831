"""Checkpoints that are whole or not there, and that run nothing when they are read.

A checkpoint is a directory `step-N`. Tensors (safetensors) and facts (JSON) are written into `step-N.tmp-PID`, the
manifest with every file's size and SHA-256 last, then the directory is renamed. Without a valid manifest it is no
checkpoint, and the newest valid one wins: no file names "the latest".

The first rank writes all its tensors, each other one those that are its own (`Checkpoint.own`) and its pieces of those
that ranks share (`Checkpoint.sharded`). Another number of ranks continues from the means of the former: they are running
statistics and sums over steps, of which no rank's is the right one. Of the latter it is given wholes, one rank's piece
after another's, and takes its own pieces.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.errors import StorageError
from fastmpl.run.checkpoint_files import (
    FACTS,
    MANIFEST,
    SCHEMA,
    TENSORS,
    fingerprint,
    json_in,
    manifest_of,
    tensors_in,
    tensors_of,
    verify,
)

_NAME = re.compile(r"step-(\d{1,12})")


class Checkpoint(NamedTuple):
    """What one step of a run continues from."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    own: Collection[str] = ()  # names of the tensors that differ between ranks
    sharded: Collection[str] = ()  # names of those that are pieces of one; a rank may hold nothing of some
    ranks: int = 1  # that wrote it


def save(folder: Path, checkpoint: Checkpoint, ranks: Ranks = ALONE) -> Path:
    """Writes `checkpoint` under `folder` so that a kill at any moment leaves the one before it valid.

    Every rank calls it. Raises StorageError on all of them where a disk is full or the folder cannot be written on any;
    what was half written is removed.
    """
    final = folder / f"step-{checkpoint.step}"
    draft = folder / f"{final.name}.tmp-{ranks.all_gather_object(os.getpid())[0]}"
    first = ranks.rank == 0
    contents = {tensors_of(ranks.rank): _encoded(checkpoint, first)}
    if first:
        contents[FACTS] = json.dumps(checkpoint.facts, indent=1).encode()
    size = sum(map(len, contents.values()))
    try:
        with _together(ranks, final, size):
            if first:
                folder.mkdir(parents=True, exist_ok=True)
                draft.mkdir()
        with _together(ranks, final, size):
            for name, data in contents.items():
                _write(draft / name, data)
        every = ranks.all_gather_object({name: fingerprint(data) for name, data in contents.items()})
        files = {name: found for part in every for name, found in part.items()}
        manifest = {"schema": SCHEMA, "step": checkpoint.step, "ranks": ranks.size, "files": files}
        manifest |= {"sharded": sorted(checkpoint.sharded)}
        with _together(ranks, final, size):
            if first:
                _finish(draft, final, manifest)
    except StorageError:
        if first:
            shutil.rmtree(draft, ignore_errors=True)
        raise
    return final


def _encoded(checkpoint: Checkpoint, first: bool) -> bytes:
    shared = {name for name in checkpoint.sharded if name in checkpoint.tensors}
    names = checkpoint.tensors if first else {*checkpoint.own, *shared}
    # channels-last weights are strided, and the format holds dense tensors alone
    return safetensors.torch.save({name: checkpoint.tensors[name].detach().cpu().contiguous() for name in names})


def _finish(draft: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    """Makes a checkpoint of what every rank has written."""
    missing = [name for name in manifest["files"] if not (draft / name).is_file()]
    if missing:
        raise StorageError(f"{draft} lacks {missing[0]}: run.output must be on a disk that all machines share.")
    _write(draft / MANIFEST, json.dumps(manifest, indent=1).encode())
    _sync(draft)
    if final.exists():  # the same step again, after a resume: the old one is equal
        shutil.rmtree(final)
    draft.rename(final)
    _sync(final.parent)


@contextlib.contextmanager
def _together(ranks: Ranks, path: Path, size: int) -> Iterator[None]:
    """What fails on one rank within the block fails on all, with that rank's sentence."""
    fault = None
    try:
        yield
    except StorageError as error:
        fault = error
    except OSError as error:
        fault = _explained(error, path, size)
    sentences = [
        sentence for sentence in ranks.all_gather_object(None if fault is None else str(fault.args[0])) if sentence
    ]
    if sentences:
        raise StorageError(sentences[0]) from fault


def steps(folder: Path) -> list[int]:
    """The steps of what looks like a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def newest(folder: Path, complain: Callable[[str], None], ranks: Ranks = ALONE) -> Checkpoint | None:
    """The newest valid checkpoint; each newer one that is not valid is named to `complain`, with its fault.

    Every rank calls it. The first one decides, having looked at every file.
    """
    found = None
    for step in steps(folder) if ranks.rank == 0 else []:
        try:
            verify(folder / f"step-{step}")
            found = step
            break
        except StorageError as error:
            complain(f"{error} The one before it is used.")
    chosen = ranks.all_gather_object(found)[0]
    return None if chosen is None else read(folder / f"step-{chosen}", ranks)


def read(path: Path, ranks: Ranks = ALONE) -> Checkpoint:
    """The checkpoint of that directory, as this rank continues it.

    Raises StorageError, naming the file that is missing or altered.
    """
    manifest = verify(path) if ranks.rank == 0 else manifest_of(path)
    saved = manifest["ranks"]
    sharded = set(manifest.get("sharded", ()))
    first = tensors_in(path / TENSORS)
    same = {name: value for name, value in first.items() if name not in sharded}  # on every rank, or its mean
    if saved == ranks.size:
        mine = tensors_in(path / tensors_of(ranks.rank)) if ranks.rank else first
        own = set(mine) - sharded if ranks.rank else set()
        tensors = same | mine
    else:
        each = [first, *(tensors_in(path / tensors_of(rank)) for rank in range(1, saved))]
        own = set(each[-1]) - sharded if saved > 1 else set()
        tensors = same | {name: _mean([part[name] for part in each]) for name in own}
        tensors |= {name: torch.cat([part[name].reshape(-1) for part in each if name in part]) for name in sharded}
    return Checkpoint(int(manifest["step"]), tensors, json_in(path / FACTS), own, sharded, saved)


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


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)


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
