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
import re
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
from fastmpl.untrusted import read_json_object

_SHARD: Final = re.compile(r"[a-z]{1,20}/[a-z]{1,20}-[0-9]{6,12}\.tar")  # of a part, as a manifest names it

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
        note = _check_note(read_json_object(job.note))
        return note if job.file.stat().st_size == note["bytes"] and job.file.with_suffix(".idx").exists() else None
    except (OSError, ValueError):
        return None


def _check_note(note: Any) -> dict[str, Any]:
    """A shard's note, once it holds what one holds. Raises ValueError."""
    kinds = {"images": int, "bytes": int, "sha256": str, "left_out": list}
    if not isinstance(note, dict) or any(type(note.get(key)) is not kind for key, kind in kinds.items()):
        raise ValueError("the note of a shard lacks its images, bytes, sha256 or left_out")
    words = ("file", "reason")
    if not all(isinstance(one, dict) and all(isinstance(one.get(w), str) for w in words) for one in note["left_out"]):
        raise ValueError("a file that was left out has no name or no reason")
    return note


def _claim_output(out: Path, plan: dict[str, Any]) -> None:
    """Begins a pack in `out`, or continues the one there. Raises DataError where `out` holds anything else."""
    path = out / PACK_PLAN
    if not path.exists():
        if out.exists() and any(out.iterdir()):
            raise DataError(f"{out} holds other files already: name a folder that is empty, or does not exist.")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(plan, indent=1) + "\n")
    try:
        held = read_json_object(path)
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


def _check_shard(shard: Any) -> dict[str, Any]:
    """A shard in a manifest, once its file lies in the pack. Raises ValueError."""
    found = _check_note(shard)
    if not isinstance(found.get("file"), str) or not _SHARD.fullmatch(found["file"]):
        raise ValueError(f"{str(found.get('file'))[:80]!r} is no shard of a pack")
    return found


def verify(out: Path) -> Iterator[str]:
    """Compares every shard of a pack with its checksum; yields a sentence for each that differs.

    Raises DataError where there is no manifest.
    """
    try:
        listed = read_json_object(out / MANIFEST).get("shards")
        shards = [_check_shard(shard) for shard in listed] if isinstance(listed, list) else None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{out} has no manifest ({error}): `fastmpl pack` again, which writes what is missing."
        ) from error
    if shards is None:
        raise DataError(f"{out / MANIFEST} lists no shards: `fastmpl pack` again, which writes what is missing.")
    for shard in shards:
        path = out / shard["file"]
        if not path.is_file():
            yield f"{path} is missing"
            continue
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                yield f"{path} was altered since it was written"
