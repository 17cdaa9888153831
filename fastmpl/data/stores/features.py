"""Reads the stored features of a frozen network over the images of a data set, which take the images' place in a run.

A store is a folder with header.json and shards of float32 rows. It has up to three tables: `centre` [N, F] of the training
images as they are evaluated, `test` [T, F] of the test images, and `views` [N, 2V, F] of V weak and then V strong views of
each training image. The header holds the size and checksum of every shard; they are verified when the store is opened.
`fastmpl.data.stores.feature_writer` writes stores.
"""

import json
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.errors import DataError, printable
from fastmpl.data.stores.store import StoreShard, checksum

HEADER: Final = "header.json"
FORMAT: Final = "fastmpl features 1"
TABLES: Final = ("centre", "test", "views")
AGAIN: Final = "delete it and run the same `fastmpl probe` again, which writes what is missing."

Rows = NDArray[np.float32]


class FeaturePlan(NamedTuple):
    """What a store holds. `images`: the digest of the training images. `network`: whose features they are, in words."""

    train: int
    test: int
    features: int
    views: int
    images: str
    network: str
    shard_images: int = 1 << 14

    def images_of(self, table: str) -> int:
        """The number of images in a table."""
        return {"centre": self.train, "test": self.test, "views": self.train if self.views else 0}[table]

    def row(self, table: str) -> tuple[int, ...]:
        """The shape of an image's entry in a table."""
        return (2 * self.views, self.features) if table == "views" else (self.features,)

    def shards(self) -> list[tuple[str, int, int]]:
        """Table, first image and the image after the last one of each shard, in order."""
        size = self.shard_images
        return [
            (table, first, min(first + size, count))
            for table in TABLES
            for count in (self.images_of(table),)
            for first in range(0, count, size)
        ]


def shard_name(table: str, first: int) -> str:
    """The file of a shard, and with .json the note on it."""
    return f"{table}-{first:09d}.bin"


class FeatureHeader(NamedTuple):
    """The contents of header.json."""

    plan: FeaturePlan
    shards: tuple[StoreShard, ...]  # in the order of the plan's

    def to_json(self) -> str:
        parts = {"plan": self.plan._asdict(), "shards": [shard._asdict() for shard in self.shards]}
        return json.dumps({"format": FORMAT} | parts, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError, KeyError, TypeError or AttributeError where `text` is not a header."""
        parts: dict[str, Any] = json.loads(text)
        if parts["format"] != FORMAT:
            raise ValueError("another format")
        plan = FeaturePlan(**parts["plan"])
        for name, least in (("train", 1), ("test", 0), ("features", 1), ("views", 0), ("shard_images", 1)):
            if type(value := getattr(plan, name)) is not int or value < least:
                raise ValueError(f"{name} is {value}")
        shards = tuple(StoreShard(**shard) for shard in parts["shards"])
        if [shard.file for shard in shards] != [shard_name(table, first) for table, first, _ in plan.shards()]:
            raise ValueError("it names other shards than its numbers ask for")
        return cls(plan, shards)


class FeatureStore(NamedTuple):
    """An open store; made by `open_features`. `views` is None where none were stored."""

    folder: Path
    plan: FeaturePlan
    centre: Rows
    test: Rows
    views: Rows | None

    def require(self, *, images: str) -> Self:
        """This store. Raises DataError where it belongs to other training images than those of the digest `images`."""
        if self.plan.images != images:
            raise DataError(
                f"data.features = {printable(self.folder)!r} was made for other images ({self.plan.train} of them) than "
                "this run's, or for another data.image_size: take [data] from the config.toml of the probe, or run "
                "`fastmpl probe` on this data."
            )
        return self


class Standardisation(NamedTuple):
    """Mean of each feature, and what a difference from it is multiplied by; float32 [F] both."""

    mean: Rows
    scale: Rows

    def apply(self, rows: Rows) -> Rows:
        """Rows [..., F] with mean 0 and deviation 1 over the training images."""
        return np.asarray((rows - self.mean) * self.scale, np.float32)


def measure_features(centre: Rows) -> Standardisation:
    """The constants of the training images' features [N, F]. A feature that never changes becomes 0."""
    mean = centre.mean(0, dtype=np.float64)
    deviation = centre.std(0, dtype=np.float64)
    varies = deviation > 1e-6 * deviation.max(initial=0.0)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1.0), 0.0)
    return Standardisation(mean.astype(np.float32), scale.astype(np.float32))


def open_features(folder: str | Path) -> FeatureStore:
    """Opens the store in `folder` and verifies every shard. Raises DataError, naming what is wrong."""
    folder = Path(folder)
    header = read_header(folder)
    tables: dict[str, list[Rows]] = {name: [] for name in TABLES}
    for (table, first, end), shard in zip(header.plan.shards(), header.shards, strict=True):
        path, shape = folder / shard.file, (end - first, *header.plan.row(table))
        size = path.stat().st_size if path.is_file() else -1
        if size != shard.bytes or size != 4 * int(np.prod(shape)):
            found = "is missing" if size < 0 else f"holds {size} bytes"
            raise DataError(f"{path} {found}, and should hold {shard.bytes}: {AGAIN}")
        if checksum(path) != shard.blake2b:
            raise DataError(f"{path} was altered since it was written (its checksum differs): {AGAIN}")
        tables[table].append(np.memmap(path, np.float32, "r", shape=shape).view(np.ndarray))
    plan = header.plan
    whole = {
        name: parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, *plan.row(name)), np.float32), *parts])
        for name, parts in tables.items()
    }
    return FeatureStore(folder, plan, whole["centre"], whole["test"], whole["views"] if plan.views else None)


def read_header(folder: Path) -> FeatureHeader:
    """The header of the store in `folder`; its shards are not looked at. Raises DataError where there is none."""
    path = folder / HEADER
    if not path.is_file():
        found = "is not finished" if any(folder.glob("centre-*")) else "holds no stored features"
        raise DataError(f"data.features: {printable(folder)} {found}. Run `fastmpl probe`, which writes them.")
    try:
        return FeatureHeader.from_json(path.read_text())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise DataError(f"{path} is not the header of stored features ({error}): {AGAIN}") from error
