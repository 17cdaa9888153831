"""What can be found out before a run starts: its data is there and enough, and its folder can be written."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fastmpl.config import Config
from fastmpl.errors import StorageError

LEAST_FREE = 200 * 2**20  # bytes; two checkpoints of two small networks with their optimisers


def check_data(config: Config) -> str:
    """Reads the data and splits it. Raises DataError where it cannot be read or has too few images."""
    from fastmpl.data import sources
    from fastmpl.data.split import split

    data = config.data
    arrays = sources.load(data)
    parts = split(
        arrays.train_labels,
        len(arrays.classes),
        labelled=data.labels,
        trusted=data.trusted,
        unlabelled=data.unlabelled,
        validation=data.validation,
        seed=config.run.seed,
    )
    counts = ", ".join(f"{len(index)} {name}" for name, index in parts._asdict().items())
    return f"{data.source}: {len(arrays.classes)} classes, {counts}, {len(arrays.test_labels)} test images"


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
    yield "data    " + check_data(config)
