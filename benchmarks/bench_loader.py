"""Images a second of two-view samples from JPEGs of 500 x 375: `python -m benchmarks.bench_loader`.

Three loaders, interleaved in one run on the same cores: fastmpl's stream; PIL with torchvision's v2 in a DataLoader's
worker processes; and torchvision from decoding on, on tensors, in the same workers. Each is taken from its steady state,
after what it made ahead is used up. CPU seconds are of all threads and processes. A second record says where our time
goes, operator by operator.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from benchmarks import loader_parts
from benchmarks.loaders import Ours, Workers
from benchmarks.records import Record, Row, save
from tests import mini_imagenet

BASELINE = "PIL, torchvision v2, DataLoader"
AHEAD = 8  # batches that may lie ready when a loader was idle
REST = 0.8  # seconds in which a loader fills up what it makes ahead


class Loader(Protocol):
    """Gives one batch after another."""

    def next(self) -> object: ...
    def cpu(self) -> float:
        """CPU seconds of its own processes so far."""
        ...


class Sample(NamedTuple):
    """Seconds of one image, on the wall and of all cores."""

    wall: float
    cpu: float


def write_jpegs(folder: Path, count: int) -> list[Path]:
    """`count` files of 500 x 375 pixels, of the weight of ImageNet's."""
    files = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(mini_imagenet.jpeg(number % 10, 0, number, (500, 375)))
    return files


def time_batches(loader: Loader, batches: int, batch: int) -> Sample:
    """One sample of `batches` batches, in the steady state; afterwards the loader comes to rest."""
    for _ in range(AHEAD):
        loader.next()
    wall, cpu = time.perf_counter(), time.process_time() + loader.cpu()
    for _ in range(batches):
        loader.next()
    images = batches * batch
    sample = Sample((time.perf_counter() - wall) / images, (time.process_time() + loader.cpu() - cpu) / images)
    time.sleep(REST)
    return sample


def take_turns(loaders: Mapping[str, Loader], rounds: int, batches: int, batch: int) -> dict[str, list[Sample]]:
    """`rounds` samples of each loader; the order turns from round to round."""
    names, samples = list(loaders), {name: list[Sample]() for name in loaders}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(time_batches(loaders[name], batches, batch))
    return samples


def _spread(values: Iterable[float], digits: int) -> str:
    low, middle, high = np.quantile(list(values), (0.25, 0.5, 0.75))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def make_rows(samples: Mapping[str, list[Sample]], augmentation: str) -> list[Row]:
    """One row a loader; ratios are taken within a round against the baseline."""
    base = samples[BASELINE]
    made: list[Row] = []
    for name, taken in samples.items():
        faster = [b.wall / s.wall for b, s in zip(base, taken, strict=True)]
        dearer = [s.cpu / b.cpu for b, s in zip(base, taken, strict=True)]
        made.append(
            {
                "RandAugment": augmentation,
                "loader": name,
                "images/s": _spread((1 / s.wall for s in taken), 0),
                "images/s against the baseline": _spread(faster, 2),
                "CPU ms a sample": _spread((1e3 * s.cpu for s in taken), 2),
                "CPU against the baseline": _spread(dearer, 2),
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=8, help="of a sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of ours, and worker processes of the others")
    parser.add_argument("--dry", action="store_true", help="write no record")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write_jpegs(Path(folder), asked.files)
        found: list[Row] = []
        for operations, augmentation in ((0, "no"), (2, "2 operations, magnitude 17")):
            workers = (files, operations, asked.batch, asked.threads)
            loaders: dict[str, Loader] = {
                BASELINE: Workers(*workers, tensors=False),
                "decode_jpeg, torchvision v2 on tensors, DataLoader": Workers(*workers, tensors=True),
                "fastmpl": Ours(*workers),
            }
            samples = take_turns(loaders, asked.rounds, asked.batches, asked.batch)
            found += make_rows(samples, augmentation)
            del loaders
        parts = loader_parts.table(files[:64])
    size = float(np.mean([len(mini_imagenet.jpeg(k % 10, 0, k, (500, 375))) for k in range(20)]))
    config = {k: v for k, v in vars(asked).items() if k != "dry"} | {"JPEG bytes": round(size)}
    for name, content in (("loader", found), ("loader_parts", parts)):
        for row in content:
            print("  ".join(map(str, row.values())))
        if not asked.dry:
            print(save(Record(name, "table", content, {**config, "baseline": BASELINE})))


if __name__ == "__main__":
    main()
