"""A folder of pictures into WebDataset tars, as `fastmpl.data.tar_index` reads them: `fastmpl pack`.

A part's images keep their order; so the split, the order of training and, where no picture is resized, every view are
those of the folder. A shard appears under its name when it is whole, with DALI's index and a note beside it; whoever is
interrupted goes on with the shards that have none. The last step is manifest.json, with the SHA-256 of every shard.
Pictures that cannot be decoded are left out, and named in it.

    OUT/labelled/labelled-000000.tar      00000017-NAME.jpg, 00000017-NAME.cls: a picture, and the name of its class
    OUT/labelled/labelled-000000.idx
    OUT/labelled/labelled-000000.json     what the manifest will say of it
    OUT/classes.txt, OUT/plan.json, OUT/manifest.json
"""

import hashlib
import io
import json
import multiprocessing
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final, NamedTuple

from PIL import Image

from fastmpl.data.arrays import Arrays, Labels
from fastmpl.data.decode import decode_whole, reason_of
from fastmpl.data.encoded import Files, Names
from fastmpl.data.errors import DataError
from fastmpl.data.streamed_sources import CLASSES, read_files
from fastmpl.errors import StorageError
from fastmpl.threads import cores

FORMAT: Final = "fastmpl pack 1"
PLAN, MANIFEST = "plan.json", "manifest.json"
BLOCK: Final = 512  # of a tar
Tell = Callable[[str], None]


class How(NamedTuple):
    """size: pixels of the longer side, to which larger pictures are made smaller; 0: every file is packed as it is."""

    size: int = 0
    quality: int = 90  # of the JPEGs that are made
    shard_images: int = 1000


class Job(NamedTuple):
    """One shard: its images, the number of the first, and the class of each; -1: none."""

    file: Path
    images: Files
    first: int
    labels: Labels
    classes: tuple[str, ...]
    how: How

    @property
    def note(self) -> Path:
        return self.file.with_suffix(".json")


class Packed(NamedTuple):
    """What was packed, from the manifest."""

    images: int
    shards: int
    bytes: int
    left_out: list[dict[str, str]]


def smaller(content: bytes, image: Image.Image, how: How) -> tuple[bytes, bool]:
    """A picture's file, or a JPEG of it whose longer side has `how.size` pixels where it has more; and whether so."""
    longer = max(image.size)
    if not how.size or longer <= how.size:
        return content, False
    width, height = (max(1, round(side * how.size / longer)) for side in image.size)
    out = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(out, "JPEG", quality=how.quality)
    return out.getvalue(), True


def _stem(number: int, name: str) -> str:
    """A sample's name: WebDataset ends it at the first dot, and DALI's index at the first space."""
    return f"{number:08d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', Path(name).stem)[:60]}"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> str:
    """Adds a file that every call makes alike; gives its words for the index: extension, offset, size, name."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    start = tar.offset - -(-len(content) // BLOCK) * BLOCK
    return f"{name.partition('.')[2]} {start} {len(content)} {name}"


def _samples(job: Job, left_out: list[dict[str, str]]) -> Iterator[tuple[str, str, bytes, int]]:
    """Name, extension, content and label of every picture of a shard that can be decoded."""
    for index, name in enumerate(job.images.names):
        try:
            content = job.images.read(index).tobytes()
        except OSError as error:
            left_out.append({"file": name, "reason": reason_of(error)})
            continue
        image, remark = decode_whole(content) if content else (None, "the file is empty")
        if image is None:
            left_out.append({"file": name, "reason": remark})
            continue
        content, changed = smaller(content, image, job.how)
        suffix = ".jpg" if changed else Path(name).suffix.lower()
        yield _stem(job.first + index, name), suffix, content, int(job.labels[index])


def _write(path: Path, content: str) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(content, encoding="utf-8")
    draft.replace(path)


def pack_shard(job: Job) -> dict[str, Any]:
    """Writes one shard, its index and its note; gives the note."""
    draft, lines = job.file.with_name(f"{job.file.name}.{os.getpid()}.tmp"), []
    left_out: list[dict[str, str]] = []
    try:
        with draft.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for stem, suffix, content, label in _samples(job, left_out):
                words = [_add(tar, f"{stem}{suffix}", content)]
                if label >= 0:
                    words.append(_add(tar, f"{stem}.cls", job.classes[label].encode()))
                lines.append(" ".join(words))
        with draft.open("rb") as written:
            os.fsync(written.fileno())
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        note = {"bytes": draft.stat().st_size, "sha256": digest, "images": len(lines), "left_out": left_out}
        draft.replace(job.file)
        _write(job.file.with_suffix(".idx"), "\n".join([f"v1.2 {len(lines)}", *lines]) + "\n")
        _write(job.note, json.dumps(note))
        return note
    finally:
        draft.unlink(missing_ok=True)


def _jobs(arrays: Arrays, out: Path, how: How) -> list[Job]:
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
        for number, start in enumerate(range(first, last, how.shard_images)):
            own = slice(start, min(start + how.shard_images, last))
            file, some = out / part / f"{part}-{number:06d}.tar", Files(images.root, Names(images.names[own]))
            jobs.append(Job(file, some, start, labels[own], arrays.classes, how))
    return jobs


def _note(job: Job) -> dict[str, Any] | None:
    """What is known of a shard that is whole; None of one that has yet to be made."""
    try:
        note: dict[str, Any] = json.loads(job.note.read_text())
        return note if job.file.stat().st_size == note["bytes"] and job.file.with_suffix(".idx").exists() else None
    except (OSError, ValueError, KeyError):
        return None


def _agree(out: Path, plan: dict[str, Any]) -> None:
    """Begins a pack, or goes on with one. Raises DataError where `out` holds another."""
    path = out / PLAN
    if not path.exists():
        if out.exists() and any(out.iterdir()):
            raise DataError(f"{out} holds other files already: name a folder that is empty, or does not exist.")
        out.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(plan, indent=1) + "\n")
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete {out} and start again.") from error
    if differing := [key for key in plan if held.get(key) != plan[key]]:
        raise DataError(f"{out} holds a pack with another {', '.join(differing)}: name another folder, or delete it.")


def _made(jobs: list[Job], processes: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Packs shards in their order, several at a time."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from zip(jobs, pool.map(pack_shard, jobs), strict=True)


def pack(folder: str, out: Path, how: How, *, processes: int = 0, tell: Tell) -> Packed:
    """Packs the pictures of `folder` into `out`, or what is missing of them. Raises DataError and StorageError."""
    arrays = read_files(folder)
    images = {"training": arrays.train_images.digest, "test": arrays.test_images.digest}  # type: ignore[union-attr]
    try:
        _agree(out, {"format": FORMAT, **how._asdict(), "images": images})
        jobs = _jobs(arrays, out, how)
        for part in {job.file.parent for job in jobs}:
            part.mkdir(exist_ok=True)
            for draft in part.glob("*.tmp"):  # of a process that was killed
                draft.unlink()
        _write(out / CLASSES, "".join(f"{name}\n" for name in arrays.classes))
        notes = {job.file: note for job in jobs if (note := _note(job)) is not None}
        missing = [job for job in jobs if job.file not in notes]
        for job, note in _made(missing, processes or cores()):
            notes[job.file] = note
            tell(f"{job.file}: {note['images']:,} images; {len(notes):,} of {len(jobs):,} shards are written")
        shards = [{"file": job.file.relative_to(out).as_posix(), **notes[job.file]} for job in jobs]
        _write(out / MANIFEST, json.dumps({"format": FORMAT, **how._asdict(), "shards": shards}, indent=1) + "\n")
    except BrokenProcessPool as error:
        raise DataError(
            f"a picture in {folder} crashed its decoder: `fastmpl check` says which; take it away."
        ) from error
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror}. Make room; the same command goes on."
        ) from error
    left_out = [one for shard in shards for one in shard["left_out"]]
    return Packed(sum(s["images"] for s in shards), len(shards), sum(s["bytes"] for s in shards), left_out)


def verify(out: Path) -> Iterator[str]:
    """Holds every shard of a pack to its checksum; a sentence for each that differs. Raises DataError without one."""
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
