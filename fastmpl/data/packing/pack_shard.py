"""Writes one shard of a pack: a tar of images, with DALI's index and a note beside it.

The same images always give a tar of the same bytes. A shard gets its name when it is complete.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from PIL import Image

from fastmpl.data.dataset import Labels
from fastmpl.data.files.decode import decode_whole, reason_of
from fastmpl.data.files.encoded import Files

BLOCK: Final = 512  # of a tar


class PackSettings(NamedTuple):
    """`size`: pixels of the longer side, to which larger images are shrunk; 0 packs every file unchanged."""

    size: int = 0
    quality: int = 90  # of the JPEGs that are made
    shard_images: int = 1000


class ShardJob(NamedTuple):
    """One shard to write: its images, the number of the first of them, and the label of each (-1: none)."""

    file: Path
    images: Files
    first: int
    labels: Labels
    classes: tuple[str, ...]
    options: PackSettings

    @property
    def note(self) -> Path:
        return self.file.with_suffix(".json")


def shrink(content: bytes, image: Image.Image, options: PackSettings) -> tuple[bytes, bool]:
    """Shrinks an image whose longer side exceeds `options.size` pixels; returns its bytes and whether they are new."""
    longer = max(image.size)
    if not options.size or longer <= options.size:
        return content, False
    width, height = (max(1, round(side * options.size / longer)) for side in image.size)
    out = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(out, "JPEG", quality=options.quality)
    return out.getvalue(), True


def _stem(number: int, name: str) -> str:
    """The name of a sample, without dots, at which WebDataset ends it, and without spaces, at which DALI's index does."""
    return f"{number:08d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', Path(name).stem)[:60]}"


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> str:
    """Adds a file without date or owner. Returns its entry for the index: extension, offset, size, name."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    start = tar.offset - -(-len(content) // BLOCK) * BLOCK
    return f"{name.partition('.')[2]} {start} {len(content)} {name}"


def _read_samples(job: ShardJob, left_out: list[dict[str, str]]) -> Iterator[tuple[str, str, bytes, int]]:
    """Yields name, extension, content and label of every image that can be decoded; appends the others to `left_out`."""
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
        content, changed = shrink(content, image, job.options)
        suffix = ".jpg" if changed else Path(name).suffix.lower()
        yield _stem(job.first + index, name), suffix, content, int(job.labels[index])


def write_whole(path: Path, content: str) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(content, encoding="utf-8")
    draft.replace(path)


def pack_shard(job: ShardJob) -> dict[str, Any]:
    """Writes one shard, its index and its note. Returns the note."""
    draft, lines = job.file.with_name(f"{job.file.name}.{os.getpid()}.tmp"), []
    left_out: list[dict[str, str]] = []
    try:
        with draft.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for stem, suffix, content, label in _read_samples(job, left_out):
                words = [_add_member(tar, f"{stem}{suffix}", content)]
                if label >= 0:
                    words.append(_add_member(tar, f"{stem}.cls", job.classes[label].encode()))
                lines.append(" ".join(words))
        with draft.open("rb") as written:
            os.fsync(written.fileno())
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        note = {"bytes": draft.stat().st_size, "sha256": digest, "images": len(lines), "left_out": left_out}
        draft.replace(job.file)
        write_whole(job.file.with_suffix(".idx"), "\n".join([f"v1.2 {len(lines)}", *lines]) + "\n")
        write_whole(job.note, json.dumps(note))
        return note
    finally:
        draft.unlink(missing_ok=True)
