"""Atomic checkpoints: complete or absent. Reading one executes nothing.

A checkpoint is a directory `step-N`. Tensors (safetensors) and facts (JSON) are written into `step-N.tmp-PID`, then the
manifest with the size and the SHA-256 of every file, then the directory is renamed. A directory without a valid manifest
is not a checkpoint. The newest valid one is used; no file names "the latest".

Rank 0 writes all its tensors. Every other rank writes the tensors that differ between ranks (`Checkpoint.own`) and its
shards (`Checkpoint.sharded`). Another number of ranks continues from the means of the former, which are running statistics
and sums over steps; of the latter, every rank reads the concatenated shards and takes its own part.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.errors import FastMPLError, FolderLostError, StorageError
from fastmpl.run.checkpoint_files import (
    FACTS,
    MANIFEST,
    NAME,
    TENSORS,
    read_json,
    read_manifest,
    read_tensors,
    tensors_of,
    verify,
)
from fastmpl.run.checkpoint_schema import SCHEMA, migrate
from fastmpl.run.tensor_file import encode_tensors


class Checkpoint(NamedTuple):
    """The state of a run after a step."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    own: Collection[str] = ()  # names of the tensors that differ between ranks
    sharded: Collection[str] = ()  # names of the tensors that are shards; a rank may hold no part of some
    ranks: int = 1  # number of ranks that wrote it

    def tensors_on(self, rank: int) -> dict[str, Tensor]:
        """Those that `rank` writes."""
        if rank == 0:
            return self.tensors
        shared = {name for name in self.sharded if name in self.tensors}
        return {name: self.tensors[name] for name in {*self.own, *shared}}


def save(
    folder: Path, checkpoint: Checkpoint, ranks: Ranks = ALONE, require: Callable[[], None] = lambda: None
) -> Path:
    """Writes `checkpoint` under `folder`. A kill at any moment leaves the previous checkpoint valid.

    Every rank calls it. require: raises FolderLostError on the first rank if the run has lost its folder; then nothing is
    written, and all ranks raise it. Raises StorageError on all ranks if the disk is full or the folder cannot be written
    on any of them; incomplete files are removed. Beyond the tensors' own memory it takes that of one tensor.
    """
    final = folder / f"step-{checkpoint.step}"
    draft = folder / f"{final.name}.tmp-{ranks.all_gather_object(os.getpid())[0]}"
    first = ranks.rank == 0
    mine = checkpoint.tensors_on(ranks.rank)
    contents: dict[str, Iterable[bytes | memoryview]] = {tensors_of(ranks.rank): encode_tensors(mine)}
    if first:
        contents[FACTS] = [json.dumps(checkpoint.facts, indent=1).encode()]
    size = sum(tensor.nbytes for tensor in mine.values())
    written = {}
    try:
        with _fail_together(ranks, final, size):
            if first:
                require()
                folder.mkdir(parents=True, exist_ok=True)
                draft.mkdir()
        with _fail_together(ranks, final, size):
            for name, pieces in contents.items():
                written[name] = _write(draft / name, pieces)
        every = ranks.all_gather_object(written)
        files = {name: found for part in every for name, found in part.items()}
        manifest = {"schema": SCHEMA, "step": checkpoint.step, "ranks": ranks.size, "files": files}
        manifest |= {"sharded": sorted(checkpoint.sharded)}
        with _fail_together(ranks, final, size):
            if first:
                _finish(draft, final, manifest)
    except StorageError:
        if first:
            shutil.rmtree(draft, ignore_errors=True)
        raise
    return final


def _finish(draft: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest over the files of all ranks and renames the directory."""
    missing = [name for name in manifest["files"] if not (draft / name).is_file()]
    if missing:
        raise StorageError(f"{draft} has no {missing[0]}: put run.output on a disk that all machines share.")
    _write(draft / MANIFEST, [json.dumps(manifest, indent=1).encode()])
    _sync(draft)
    if final.exists():  # the same step was saved before a resume; the two are equal
        shutil.rmtree(final)
    draft.rename(final)
    _sync(final.parent)


@contextlib.contextmanager
def _fail_together(ranks: Ranks, path: Path, size: int) -> Iterator[None]:
    """Raises the error of any rank on all ranks, at the end of the block."""
    fault = None
    try:
        yield
    except StorageError as error:
        fault = error
    except OSError as error:
        fault = _explain(error, path, size)
    mine = None if fault is None else (isinstance(fault, FolderLostError), str(fault.args[0]))
    found = [each for each in ranks.all_gather_object(mine) if each is not None]
    if found:
        is_lost, sentence = found[0]
        raise (FolderLostError if is_lost else StorageError)(sentence) from fault


def steps(folder: Path) -> list[int]:
    """The steps of the directories that are named like checkpoints, newest first."""
    if not folder.is_dir():
        return []
    found = (NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def read_newest(
    folder: Path,
    complain: Callable[[str], None],
    ranks: Ranks = ALONE,
    require: Callable[[Checkpoint], None] | None = None,
) -> Checkpoint | None:
    """The newest valid checkpoint. Calls `complain` with a sentence for every newer one that is not valid.

    Every rank calls it; a checkpoint is used if it is valid for all of them. require: raises a FastMPLError if a checkpoint
    that is whole does not fit the run; the one before is then used, and that error is raised if none fits.
    """
    misfit: FastMPLError | None = None
    for step in ranks.all_gather_object(steps(folder))[0]:
        fault: FastMPLError | None = None
        found = None
        try:
            found = read(folder / f"step-{step}", ranks)
        except StorageError as error:
            fault = error
        if found is not None and require is not None:
            try:
                require(found)
            except FastMPLError as error:
                fault = misfit = misfit or error
        sentences = ranks.all_gather_object(None if fault is None else str(fault.args[0]))
        sentence = next((sentence for sentence in sentences if sentence), None)
        if sentence is None:
            return found
        if ranks.rank == 0:
            complain(f"{sentence} The previous checkpoint is used.")
    if misfit is not None:
        raise misfit
    return None


def read(path: Path, ranks: Ranks = ALONE) -> Checkpoint:
    """The checkpoint in that directory, as this rank continues it. Older schemas are migrated.

    Raises StorageError that names the file which is missing or altered, or the ranks' files that do not go together.
    """
    manifest = verify(path) if ranks.rank == 0 else read_manifest(path)
    try:
        return _read_parts(path, manifest, ranks)
    except (KeyError, RuntimeError, IndexError) as error:  # the files of the ranks do not go together
        raise StorageError(f"The files of {path} hold different tensors: {first_line(error)}.") from error


def _read_parts(path: Path, manifest: Mapping[str, Any], ranks: Ranks) -> Checkpoint:
    saved = manifest["ranks"]
    sharded = set(manifest.get("sharded", ()))
    first = migrate(manifest["schema"], read_tensors(path / TENSORS))
    same = {name: value for name, value in first.items() if name not in sharded}  # on every rank, or its mean
    if saved == ranks.size:
        mine = read_tensors(path / tensors_of(ranks.rank)) if ranks.rank else first
        own = set(mine) - sharded if ranks.rank else set()
        tensors = same | mine
    else:
        each = [first, *(read_tensors(path / tensors_of(rank)) for rank in range(1, saved))]
        own = set(each[-1]) - sharded if saved > 1 else set()
        tensors = same | {name: _mean([part[name] for part in each]) for name in own}
        tensors |= {name: torch.cat([part[name].reshape(-1) for part in each if name in part]) for name in sharded}
    return Checkpoint(int(manifest["step"]), tensors, read_json(path / FACTS), own, sharded, saved)


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Removes all checkpoints but the newest `keep` and the best, and incomplete ones of killed runs."""
    for step in steps(folder)[keep:]:
        if step != best:
            shutil.rmtree(folder / f"step-{step}", ignore_errors=True)
    for draft in folder.glob("step-*.tmp-*"):
        shutil.rmtree(draft, ignore_errors=True)


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Writes a file and gives its size and SHA-256. Hashing and writing let other threads run."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_line(error: Exception) -> str:
    """The first line of an error's words."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200].rstrip(". ")


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)


def _explain(error: OSError, path: Path, size: int) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = 0
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(path.parent).free
        missing = max(size - free, 0) / 1e6
        return StorageError(
            f"{path} needs {size / 1e6:.1f} MB and the disk has {free / 1e6:.1f}: free {missing:.1f} MB."
        )
    return StorageError(f"{path} cannot be written: {error.strerror}.")
