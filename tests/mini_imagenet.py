"""A small ImageNet: JPEGs of its sizes and weight, ten classes that a small network can tell apart, in any storage.

A picture is a field of noise at several scales (what a codec has to work for, as in a photograph) under coloured bands;
colour and width of the bands are the class, so that flips, crops and shifts leave it. Everything follows from (seed,
number): the same bytes on every machine with the same Pillow. Some 70 pictures a second of a core.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmpl.threads import cores

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
