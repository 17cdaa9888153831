"""Stores a teacher's distributions over all training images of a data set, once: `fastmpl distill`.

The teacher is the student of a run, a network of timm, or whatever wrote a file of probabilities. Several processes
(RANK and WORLD_SIZE, as torchrun and deepspeed set them) share the shards. What training does with a store is the
methods `distillation` and `reduced_mpl`.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fastmpl.config import Config
from fastmpl.data.build import Data
from fastmpl.data.build import build as build_data
from fastmpl.data.errors import DataError
from fastmpl.data.stores.distributions import Probabilities
from fastmpl.data.stores.store import StoreHeader, checksum
from fastmpl.data.stores.store_writer import StorePlan, StoreWriter
from fastmpl.data.stores.tables import read_table
from fastmpl.distributed.process_group import read_place
from fastmpl.errors import ConfigError, FastMPLError
from fastmpl.run.expected_inputs import settle_inputs
from fastmpl.run.fixed_teacher import Target, load_fixed_teacher
from fastmpl.run.input_constants import normalisation_of
from fastmpl.run.student_file import WEIGHTS

IMAGES = 256  # a pass
UNFILTERED = {"store": "", "filter_store": "", "minimum_confidence": 0.0, "per_class": 0}  # what a store decides


class TeacherSource(NamedTuple):
    """Where the distributions come from: `teacher` or `probabilities`, one of the two."""

    teacher: str = ""  # the folder of a run, or "timm:NAME"
    probabilities: Path | None = None  # a file
    views: int = 1  # 1: the image as it is evaluated; n: the mean over n augmented views

    def check(self) -> None:
        """Raises ConfigError where it names no teacher, or two."""
        if bool(self.teacher) == (self.probabilities is not None):
            raise ConfigError(
                "fastmpl distill needs one teacher: --teacher with the folder of a run or timm:NAME, or "
                "--from-probabilities with a file."
            )
        if self.views < 1 or (self.views > 1 and self.probabilities is not None):
            raise ConfigError(
                f"--views {self.views}: at least 1 is needed, and a file of probabilities has no views to choose."
            )


def distill(
    config: Config, source: TeacherSource, *, output: Path | None = None, top_k: int = 0, tell: Callable[[str], None]
) -> StoreHeader | None:
    """Writes what is missing of the store in `output` (data.store where not given); its header, once it is whole.

    top_k: classes kept of each row, with the mass of the others; 0: all. Raises ConfigError and DataError.
    """
    source.check()
    folder = output or (Path(config.data.store) if config.data.store else None)
    if folder is None:
        raise ConfigError("fastmpl distill needs --output, or a configuration with data.store: the folder to write.")
    config = settle_inputs(config)
    data = build_data(
        config.data.model_copy(update=UNFILTERED),
        seed=config.run.seed,
        channels_last=config.system.channels_last,
        threads=torch.get_num_threads(),
        normalisation=normalisation_of(config.student, config.data.channels),
    )
    classes = len(data.classes)
    plan = StorePlan(
        rows=len(data.truth),
        classes=classes,
        kept=min(top_k, classes) or classes,
        images=data.images_digest,
        teacher=_describe_teacher(source),
        class_names=data.classes,
    )
    here = read_place()
    writer = StoreWriter(folder, plan, rank=here.rank, world=here.size)
    try:
        _write_missing(writer, source, data, tell)
    except FastMPLError:  # whoever corrects the mistake must not find another store; an interruption keeps its shards
        writer.discard()
        raise
    return writer.finish()


def _write_missing(writer: StoreWriter, source: TeacherSource, data: Data, tell: Callable[[str], None]) -> None:
    """Writes this process's shards that are not complete yet."""
    missing = list(writer.missing())
    if not missing:
        return
    with tempfile.TemporaryDirectory(dir=writer.folder, prefix="reading-") as scratch:
        rows = _row_reader(source, data, Path(scratch), tell)
        for done, shard in enumerate(missing, 1):
            writer.write(shard, rows(*writer.plan.range(shard)))
            tell(f"{writer.folder}: {done} of {len(missing)} shards written")


def _describe_teacher(source: TeacherSource) -> str:
    """Whose distributions these are, told apart by their content: a store of another teacher is not continued."""
    if source.probabilities is not None:
        file, said = source.probabilities, f"probabilities of {source.probabilities.name}"
    else:
        file, said = Path(source.teacher) / WEIGHTS, source.teacher
    views = f", mean of {source.views} views" if source.views > 1 else ""
    return said + (f" ({checksum(file)[:8]})" if file.is_file() else "") + views


def _row_reader(
    source: TeacherSource, data: Data, scratch: Path, tell: Callable[[str], None]
) -> Callable[[int, int], Iterator[Probabilities]]:
    """A function of a range of images that gives their distributions in parts."""
    if source.probabilities is not None:
        table = read_table(source.probabilities, data.names, data.classes, scratch, data.left_out)
        for remark in table.remarks:
            tell(remark)
        return table.rows
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    target = Target(data.classes, data.image_shape, data.normalisation)
    teacher = load_fixed_teacher(source.teacher, target)
    for remark in teacher.remarks:
        tell(remark)
    network = teacher.module.to(device)
    if source.views == 1:
        return lambda first, last: _infer_centre_views(network, data, first, last, device)
    return lambda first, last: _infer_mean_of_views(network, data, first, last, source.views, device)


@torch.no_grad()
def _infer(network: nn.Module, images: Float[Tensor, "n *image"], device: torch.device) -> Probabilities:
    return np.asarray(torch.softmax(network(images.to(device)).float(), -1).cpu().numpy())


def _infer_centre_views(
    network: nn.Module, data: Data, first: int, last: int, device: torch.device
) -> Iterator[Probabilities]:
    given = 0
    for images, _ in data.examples(np.arange(first, last)).batches(device):
        for part in torch.split(images, IMAGES):
            given += len(part)
            yield _infer(network, part, device)
    if given < last - first:
        raise _unreadable_error(last - first - given)


def _unreadable_error(count: int) -> DataError:
    return DataError(
        f"{count} images cannot be read, and a store has a row for each: run `fastmpl check`, and they are left out."
    )


def _infer_mean_of_views(
    network: nn.Module, data: Data, first: int, last: int, views: int, device: torch.device
) -> Iterator[Probabilities]:
    """The mean over `views` weak views, drawn by image and epoch: the same whoever writes the shard."""
    sums = np.zeros((last - first, len(data.classes)), np.float32)
    batch, left = min(IMAGES, last - first), views * (last - first)
    stream = data.weak_views(np.arange(first, last), batch)
    while left > 0:
        given = stream.next()
        if given.replaced:
            raise _unreadable_error(len(given.replaced))
        rows = given.index.cpu().numpy()[:left] - first  # the last batch may reach into the next epoch
        np.add.at(sums, rows, _infer(network, given.weak, device)[:left])
        left -= batch
    yield sums / np.float32(views)
