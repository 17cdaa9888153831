"""A small ImageNet: JPEGs of its sizes and weight, ten classes that a small network can tell apart, in any storage.

A picture is a field of noise at several scales (what a codec has to work for, as in a photograph) under coloured bands;
colour and width of the bands are the class, so that flips, crops and shifts leave it. Everything follows from (seed,
number): the same bytes on every machine with the same Pillow. Some 70 pictures a second of a core.
"""

import io
import struct
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmpl.distributed.threads import cores

CLASSES: Final = tuple(f"n{1440764 + 2773 * number:08d}" for number in range(10))
SIZES: Final = ((500, 375), (500, 375), (500, 375), (375, 500), (500, 333), (333, 500), (400, 300), (640, 480))
OCTAVES: Final = ((4, 30.0), (16, 24.0), (96, 16.0))  # cells across the width, deviation
QUALITY: Final = 92  # with these octaves about 100 kB at 500 x 375, as ImageNet's mean


class Picture(NamedTuple):
    """One image of a part: `name` has no extension, `label` is -1 where the part has none."""

    part: str
    name: str
    label: int
    jpeg: bytes


def pixels(label: int, rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Noise and bands [height, width, 3] of a class."""
    width, height = size
    field = np.full((height, width, 3), 110, np.float32)
    for cells, deviation in OCTAVES:
        grid = rng.normal(128, deviation, (max(2, cells * height // width), cells, 3))
        rough = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
        field += np.asarray(rough.resize(size, Image.Resampling.BICUBIC), np.float32) - 128
    field += rng.normal(0, 9, (height, width, 1)).astype(np.float32)  # grain
    turn = 2 * np.pi * (label / len(CLASSES) + np.array([0, 1 / 3, 2 / 3]))
    wave = np.sin(np.arange(height) * ((3 + label % 5) * 2 * np.pi / height) + rng.uniform(0, 2 * np.pi))
    field += (55 * np.cos(turn) + rng.normal(0, 8, 3)).astype(np.float32)
    field += (18 * wave).astype(np.float32)[:, None, None]
    return np.clip(field, 0, 255).astype(np.uint8)


def jpeg(label: int, seed: int, number: int, size: tuple[int, int] | None = None) -> bytes:
    """The JPEG of a class with this number; of one of ImageNet's commonest sizes where none is given."""
    rng = np.random.default_rng([seed, number])
    chosen = SIZES[int(rng.integers(len(SIZES)))]
    out = io.BytesIO()
    Image.fromarray(pixels(label, rng, size or chosen)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def pictures(
    labelled: int, unlabelled: int, test: int, *, seed: int = 0, size: tuple[int, int] | None = None
) -> Iterator[Picture]:
    """`labelled` and `test` images of each class, and `unlabelled` in all, whose classes take turns."""
    wanted = [(part, k % len(CLASSES)) for part, n in (("labelled", labelled), ("test", test)) for k in range(n * 10)]
    wanted += [("unlabelled", k % len(CLASSES)) for k in range(unlabelled)]

    def made(number: int) -> Picture:
        part, label = wanted[number]
        content = jpeg(label, seed, number, size)
        return Picture(part, f"{CLASSES[label] if part != 'unlabelled' else 'u'}_{number:06d}", label, content)

    with ThreadPoolExecutor(cores()) as pool:
        for picture in pool.map(made, range(len(wanted))):
            yield picture._replace(label=-1 if picture.part == "unlabelled" else picture.label)


def write_folder(root: Path, images: Iterator[Picture]) -> Path:
    """labelled/<class>/*.JPEG, test/<class>/*.JPEG, unlabelled/*.JPEG."""
    for image in images:
        folder = root / image.part / ("" if image.label < 0 else CLASSES[image.label])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image.name}.JPEG").write_bytes(image.jpeg)
    return root


def write_lists(root: Path, images: Iterator[Picture]) -> Path:
    """All pictures in one folder, and a list of each part."""
    (root / "images").mkdir(parents=True)
    lines: dict[str, list[str]] = {}
    for image in images:
        path = f"images/{image.part} {image.name}.jpg"  # a name with a space
        (root / path).write_bytes(image.jpeg)
        lines.setdefault(image.part, []).append(path if image.label < 0 else f"{path}\t{CLASSES[image.label]}")
    for part, listed in lines.items():
        (root / f"{part}.txt").write_text("\n".join(listed) + "\n")
    return root


def _by_shard(images: Iterator[Picture], each: int) -> dict[str, list[Picture]]:
    """Pictures by the name of their shard, below the root and without an extension."""
    parts: dict[str, list[Picture]] = {}
    for image in images:
        parts.setdefault(image.part, []).append(image)
    return {
        f"{part}/{number:05d}": held[number * each : (number + 1) * each]
        for part, held in parts.items()
        for number in range(-(-len(held) // each))
    }


def write_tars(root: Path, images: Iterator[Picture], each: int = 64, *, numbers: bool = False) -> Path:
    """<part>/*.tar of `each` pictures; classes are written as numbers where asked."""
    for name, held in _by_shard(images, each).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            for image in held:
                word = str(image.label) if numbers else CLASSES[image.label]
                files = {"jpg": image.jpeg} | ({} if image.label < 0 else {"cls": word.encode()})
                for extension, content in files.items():
                    member = tarfile.TarInfo(f"{image.name}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return root


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes) -> bytes:
    """A protocol buffer's field of bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(features: dict[str, bytes | int]) -> bytes:
    """A tf.train.Example of one value a feature."""

    def feature(value: bytes | int) -> bytes:
        return field(1, field(1, value)) if isinstance(value, bytes) else field(3, field(1, varint(value)))

    entries = (field(1, name.encode()) + field(2, feature(value)) for name, value in features.items())
    return field(1, b"".join(field(1, entry) for entry in entries))


def record(content: bytes) -> bytes:
    """A record of a TFRecord file. Nothing here reads its checksums, which stay 0."""
    return struct.pack("<QI", len(content), 0) + content + bytes(4)


def write_tfrecords(root: Path, images: Iterator[Picture], each: int = 64) -> Path:
    """<part>/<number> of `each` records, with the features that ImageNet's have; labels count from 1, as there."""
    for name, held in _by_shard(images, each).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with (root / name).open("wb") as file:
            for image in held:
                features: dict[str, bytes | int] = {"image/height": 1, "image/encoded": image.jpeg}
                if image.label >= 0:
                    features |= {
                        "image/class/label": image.label + 1,
                        "image/class/synset": CLASSES[image.label].encode(),
                    }
                file.write(record(example({**features, "image/filename": f"{image.name}.JPEG".encode()})))
    return root


WRITERS: Final = {
    "folder": write_folder,
    "file_list": write_lists,
    "webdataset": write_tars,
    "tfrecord": write_tfrecords,
}
