"""What can be found out before a run starts: its data is there and enough, and its folder can be written."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastmpl.config import Config, feeds_back
from fastmpl.errors import StorageError

if TYPE_CHECKING:
    from fastmpl.data.prepare import Prepared

LEAST_FREE = 200 * 2**20  # bytes; two checkpoints of two small networks with their optimisers


def require_trusted(config: Config, count: int) -> None:
    """Raises DataError where trusted images are asked for and the data set aside none."""
    from fastmpl.data.errors import DataError

    asked = {
        "feedback": feeds_back(config) and config.feedback.images == "trusted",
        "finetune": config.finetune.steps > 0 and config.finetune.images == "trusted",
    }
    for section, used in asked.items():
        if used and not count:
            raise DataError(
                f'{section}.images = "trusted", and {config.data.root} has no folder trusted: '
                "put clean images into trusted/<class>/, or set data.trusted above 0 to take some of the labelled ones."
            )


def _repeated(prepared: "Prepared") -> int:
    """Test images that are also among the training images, pixel for pixel."""

    def digests(images: object) -> Iterator[bytes]:
        return (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images)  # type: ignore[attr-defined]

    arrays = prepared.arrays
    training, testing = arrays.train_images, arrays.test_images
    if arrays.transductive or not len(testing) or not isinstance(training, np.ndarray):
        return 0  # encoded images would all have to be read
    test = set(digests(testing))
    return len(test.intersection(digests(training)))


def check_data(config: Config) -> Iterator[str]:
    """Reads the data and splits it: what there is, then each file with a problem. Raises DataError if it cannot be used."""
    from fastmpl.data.prepare import prepare
    from fastmpl.data.tree import shown

    prepared = prepare(config.data, config.run.seed)
    arrays, parts = prepared.arrays, prepared.split
    require_trusted(config, len(parts.trusted))
    counts = ", ".join(f"{len(index)} {name}" for name, index in parts._asdict().items())
    yield f"data    {config.data.source}: {len(arrays.classes)} classes, {counts}, {len(arrays.test_labels)} test images"
    if repeated := _repeated(prepared):
        yield f"warning {repeated} test images are also training images: accuracy on the test images would be too high"
    for problem in arrays.problems:
        yield f"{'note' if problem.used else 'skipped':7} {shown(problem.file)}: {shown(problem.reason)}"


def check_output(config: Config) -> str:
    """Looks at the folder of the runs. Raises StorageError where it cannot be written or its disk is nearly full."""
    output = Path(config.run.output).absolute()
    existing = next(folder for folder in (output, *output.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"run.output = {config.run.output!r} cannot be written ({existing}). Name another folder.")
    free = shutil.disk_usage(existing).free
    if free < LEAST_FREE:
        raise StorageError(
            f"{existing} has {free // 2**20} MiB free, and a run needs at least {LEAST_FREE // 2**20}. "
            "Free some, or set run.output to a folder on another disk."
        )
    return f"{output}: {free / 2**30:.1f} GiB free"


def check(config: Config) -> Iterator[str]:
    """One line for each thing found in order. Raises DataError or StorageError at the first that is not."""
    yield "output  " + check_output(config)
    yield from check_data(config)
