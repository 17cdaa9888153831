"""Packs a folder of images into WebDataset tars, which `fastmpl.data.readers.tar_index` reads: `fastmpl pack`.

The images of a part keep their order. The split, the order of training and, where no image is resized, every view are
therefore those of the folder. A shard gets its name when it is complete, with DALI's index and a note beside it. An
interrupted pack continues with the shards that have no note. The last file is manifest.json, with the SHA-256 of every
shard. Images that cannot be decoded are left out, and the manifest names them.

    OUT/labelled/labelled-000000.tar      00000017-NAME.jpg, 00000017-NAME.cls: an image, and the name of its class
    OUT/labelled/labelled-000000.idx
    OUT/labelled/labelled-000000.json     the note: what the manifest will hold of this shard
    OUT/classes.txt, OUT/plan.json, OUT/manifest.json
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final, NamedTuple

from fastmpl.data.dataset import Arrays
from fastmpl.data.errors import DataError
from fastmpl.data.files.encoded import Files, Names
from fastmpl.data.packing.pack_shard import PackSettings, ShardJob, pack_shard, write_whole
from fastmpl.data.readers.class_words import CLASSES, PACK_PLAN
from fastmpl.data.readers.streamed_sources import read_files
from fastmpl.distributed.threads import cores
from fastmpl.errors import StorageError

FORMAT: Final = "fastmpl pack 1"
MANIFEST: Final = "manifest.json"
OnProgress = Callable[[str], None]


class Packed(NamedTuple):
    """Totals of a finished pack, from its manifest."""

    images: int
    shards: int
    bytes: int
    left_out: list[dict[str, str]]


def _plan_jobs(arrays: Arrays, out: Path, options: PackSettings) -> list[ShardJob]:
    """Every shard of the pack, in order."""
    labelled = int((arrays.train_labels >= 0).sum())
    trusted = 0 if arrays.trusted is None else len(arrays.trusted)
    count, tested = len(arrays.train_labels), len(arrays.test_labels)
    spans = [
        ("labelled", arrays.train_images, arrays.train_labels, 0, labelled - trusted),
        ("trusted", arrays.train_images, arrays.train_labels, labelled - trusted, labelled),
        ("unlabelled", arrays.train_images, arrays.train_labels, labelled, count),
        ("test", arrays.test_images, arrays.test_labels, 0, tested),
    ]
    jobs = []
    for part, images, labels, first, last in spans:
        assert isinstance(images, Files)
        for number, start in enumerate(range(first, last, options.shard_images)):
            own = slice(start, min(start + options.shard_images, last))
            file, some = out / part / f"{part}-{number:06d}.tar", Files(images.root, Names(images.names[own]))
            jobs.append(ShardJob(file, some, start, labels[own], arrays.classes, options))
    return jobs


def _read_note(job: ShardJob) -> dict[str, Any] | None:
    """The note of a complete shard; None of a shard that is not written yet."""
    try:
        note: dict[str, Any] = json.loads(job.note.read_text())
        return note if job.file.stat().st_size == note["bytes"] and job.file.with_suffix(".idx").exists() else None
    except (OSError, ValueError, KeyError):
        return None


def _claim_output(out: Path, plan: dict[str, Any]) -> None:
    """Begins a pack in `out`, or continues the one there. Raises DataError where `out` holds anything else."""
    path = out / PACK_PLAN
    if not path.exists():
        if out.exists() and any(out.iterdir()):
            raise DataError(f"{out} holds other files already: name a folder that is empty, or does not exist.")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(plan, indent=1) + "\n")
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete {out} and start again.") from error
    if differing := [key for key in plan if held.get(key) != plan[key]]:
        raise DataError(f"{out} holds a pack with another {', '.join(differing)}: name another folder, or delete it.")


def _pack_in_order(jobs: list[ShardJob], processes: int) -> Iterator[tuple[ShardJob, dict[str, Any]]]:
    """Packs shards in their order, several at a time."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from zip(jobs, pool.map(pack_shard, jobs), strict=True)


def pack(folder: str, out: Path, options: PackSettings, *, processes: int = 0, tell: OnProgress) -> Packed:
    """Packs the images of `folder` into `out`, or those that an interrupted call has not packed.

    Raises DataError where the folder cannot be read or `out` holds another pack, StorageError where the disk is full.
    """
    arrays = read_files(folder)
    images = {"training": arrays.train_images.digest, "test": arrays.test_images.digest}  # type: ignore[union-attr]
    try:
        _claim_output(out, {"format": FORMAT, **options._asdict(), "images": images})
        jobs = _plan_jobs(arrays, out, options)
        for part in {job.file.parent for job in jobs}:
            part.mkdir(exist_ok=True)
            for draft in part.glob("*.tmp"):  # of a process that was killed
                draft.unlink()
        write_whole(out / CLASSES, "".join(f"{name}\n" for name in arrays.classes))
        notes = {job.file: note for job in jobs if (note := _read_note(job)) is not None}
        missing = [job for job in jobs if job.file not in notes]
        for job, note in _pack_in_order(missing, processes or cores()):
            notes[job.file] = note
            tell(f"{job.file}: {note['images']:,} images; {len(notes):,} of {len(jobs):,} shards are written")
        shards = [{"file": job.file.relative_to(out).as_posix(), **notes[job.file]} for job in jobs]
        write_whole(
            out / MANIFEST, json.dumps({"format": FORMAT, **options._asdict(), "shards": shards}, indent=1) + "\n"
        )
    except BrokenProcessPool as error:
        raise DataError(f"an image in {folder} crashed its decoder: `fastmpl check` says which; remove it.") from error
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror}. Free some space; the same command continues."
        ) from error
    left_out = [one for shard in shards for one in shard["left_out"]]
    return Packed(sum(s["images"] for s in shards), len(shards), sum(s["bytes"] for s in shards), left_out)


def verify(out: Path) -> Iterator[str]:
    """Compares every shard of a pack with its checksum; yields a sentence for each that differs.

    Raises DataError where there is no manifest.
    """
    try:
        shards = json.loads((out / MANIFEST).read_text())["shards"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{out} has no manifest ({error}): `fastmpl pack` again, which writes what is missing."
        ) from error
    for shard in shards:
        path = out / shard["file"]
        if not path.is_file():
            yield f"{path} is missing"
            continue
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                yield f"{path} was altered since it was written"
