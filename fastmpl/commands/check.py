"""What can be found out before a run starts: data that is there and enough, a folder to write, a step to capture."""

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from fastmpl.config import Config, estimates_corruption, is_capturable
from fastmpl.config.meaning import NOT_CAPTURABLE
from fastmpl.errors import StorageError

if TYPE_CHECKING:
    from fastmpl.data.inventory import Problem
    from fastmpl.data.prepare import Prepared

SAY_EVERY: Final = 10  # seconds
SHOWN: Final = 10  # files of a reason, or classes, that are named
FEW_VALIDATION: Final = 10  # images; of fewer, one is more than 10 points
LEAST_FREE: Final = 200 * 2**20  # bytes; two checkpoints of two small networks with their optimisers


class _Progress:
    """Says now and then, on stderr, how far the checking is."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, done: int, count: int) -> None:
        if time.monotonic() - self._said >= SAY_EVERY:
            self._said = time.monotonic()
            print(f"{done:,} of {count:,} images are checked ({done / count:.0%})", file=sys.stderr, flush=True)


def _hash_images(images: NDArray[np.generic]) -> NDArray[np.uint64]:
    """A hash of the pixels of each image."""
    made = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.fromiter((int.from_bytes(digest) or 1 for digest in made), np.uint64, len(images))


def _read_and_check(config: Config) -> "tuple[Prepared, list[str], NDArray[np.uint64], NDArray[np.uint64]]":
    """The data, what is to be told of its checking, and hashes of its training and its test images."""
    from fastmpl.config.meaning import decodes_always
    from fastmpl.data.checks.checked import check_all
    from fastmpl.data.prepare import prepare
    from fastmpl.data.sources import list_images

    if not decodes_always(config.data):
        prepared = prepare(config.data, config.run.seed)
        train, test = prepared.arrays.train_images, prepared.arrays.test_images
        assert isinstance(train, np.ndarray) and isinstance(test, np.ndarray)
        if prepared.arrays.transductive:
            test = test[:0]
        return prepared, [], _hash_images(train), _hash_images(test)
    found = check_all(list_images(config.data), config.data.root, _Progress())
    where = f"their list is {found.file}" if found.file else "no cache can be written, so a run will find them again"
    bad, odd = (sum(len(getattr(part, kind)) for part in (found.train, found.test)) for kind in ("bad", "odd"))
    count = len(found.train.digests) + len(found.test.digests)
    said = [f"images  {count:,} were decoded: {bad:,} are bad and left out, {odd:,} are odd and used; {where}"]
    return prepare(config.data, config.run.seed), said, found.kept("train"), found.kept("test")


def _warn_of_copies(prepared: "Prepared", train: NDArray[np.uint64], test: NDArray[np.uint64]) -> Iterator[str]:
    """A warning for each kind of picture that is in two places where it should be in one."""
    from fastmpl.data.checks.copies import find_copies
    from fastmpl.data.errors import printable

    arrays = prepared.arrays
    for found in find_copies(train, test, arrays.train_labels, prepared.split):
        one = arrays.test_name(found.one) if found.of_test else arrays.train_name(found.one)
        other = printable(arrays.train_name(found.other))
        yield f"warning {found.count:,} {found.what}: {printable(one)} is the same picture as {other}"


def _warn_of_absent_classes(classes: Sequence[str], labels: NDArray[np.int64], part: str) -> Iterator[str]:
    """A warning where images of some classes are missing from a part that has others."""
    there = np.isin(np.arange(len(classes)), labels)
    if len(labels) and not there.all():
        without = [name for name, found in zip(classes, there, strict=True) if not found]
        more = f" and {len(without) - SHOWN:,} others" if len(without) > SHOWN else ""
        yield f"warning no {part} image is of class {', '.join(without[:SHOWN])}{more}: nothing will be known of it"


def _remark_on_few_images(validation: int) -> Iterator[str]:
    """A remark where one validation image more or less that is right decides which student is selected."""
    if 0 < validation < FEW_VALIDATION:
        points = f"each is {100 / validation:.0f} points of the accuracy that selects the student"
        yield f"note    {validation} validation images: {points}; label more, or set data.validation = 0 to train on them"


def _list_problems(problems: "Sequence[Problem]") -> Iterator[str]:
    """The first files of each reason, and how many more there are."""
    from fastmpl.data.errors import printable

    by_reason: dict[str, list[Problem]] = {}  # which may differ in a number
    for problem in problems:
        by_reason.setdefault(re.sub(r"\d+", "", problem.reason), []).append(problem)
    for files in by_reason.values():
        for problem in files[:SHOWN]:
            yield f"{'note' if problem.used else 'skipped':7} {printable(problem.file)}: {printable(problem.reason)}"
        more = sum(problem.count for problem in files) - min(len(files), SHOWN)
        if more:
            yield f"        and {more:,} more like this: {printable(files[0].reason)}"


def check_data(config: Config) -> Generator[str, None, "Prepared"]:
    """Reads the data and splits it: what there is, then each file with a problem. Raises DataError if it cannot be used.

    Where images are decoded at every step, all of them are decoded here, and those that are bad listed for every run.
    Returns what it read.
    """
    prepared, said, train, test = _read_and_check(config)
    arrays, parts = prepared.arrays, prepared.split
    from fastmpl.data.remarks import account_of, split_remarks
    from fastmpl.run.network_preconditions import require_label_of_each_class
    from fastmpl.run.preconditions import remark_on_finetuning, require_full_batches, require_trusted

    counts = ", ".join(f"{len(index)} {name}" for name, index in parts._asdict().items())
    yield f"data    {config.data.source}: {len(arrays.classes)} classes, {counts}, {len(arrays.test_labels)} test images"
    yield from (f"files   {line}" for line in account_of(arrays))
    yield from (f"note    {line}" for line in split_remarks(arrays, parts))
    yield from said
    yield from _warn_of_copies(prepared, train, test)
    yield from _remark_on_few_images(len(parts.validation))
    yield from _warn_of_absent_classes(arrays.classes, arrays.train_labels[parts.validation], "validation")
    yield from _warn_of_absent_classes(arrays.classes, arrays.test_labels, "test")
    yield from _list_problems(arrays.problems)
    require_trusted(config, len(parts.trusted))  # after the files that are left out, which may be why images are few
    require_label_of_each_class(config, arrays.classes, arrays.train_labels[parts.labelled])
    require_full_batches(config, parts)
    yield from (f"note    {line}" for line in remark_on_finetuning(config, parts))
    return prepared


def _image_shape(config: Config, prepared: "Prepared") -> tuple[int, ...]:
    size, images = config.data.image_size, prepared.arrays.train_images
    if prepared.normalisation is None and isinstance(images, np.ndarray):
        return tuple(images.shape[1:])
    return config.data.channels, size, size


def check_networks(config: Config, prepared: "Prepared") -> Iterator[str]:
    """Remarks on the networks. Raises ConfigError for one that cannot be trained, or a class without a label."""
    from fastmpl.data.prepare import fingerprint
    from fastmpl.distributed.process_group import read_place
    from fastmpl.run.corruption import require_judge
    from fastmpl.run.network_preconditions import require_networks
    from fastmpl.run.preconditions import require_graph, require_kernels

    require_kernels()
    require_graph(config)
    if estimates_corruption(config):
        require_judge(config.teacher.model, fingerprint(prepared, config.data, config.run.seed))
    arrays, world = prepared.arrays, read_place().size
    shape = _image_shape(config, prepared)
    for remark in require_networks(config, classes=len(arrays.classes), image_shape=shape, world=world):
        yield f"note    {remark}"
    yield from (f"weights {line}" for line in _check_weights(config, arrays.classes, shape))


def _check_weights(config: Config, classes: tuple[str, ...], image_shape: tuple[int, ...]) -> Iterator[str]:
    """Loads the weights that networks start from: how many tensors, and the images that they expect."""
    from fastmpl.config import trained_optimisers
    from fastmpl.models import build_network
    from fastmpl.models.errors import name_role
    from fastmpl.run.expected_inputs import describe_inputs
    from fastmpl.run.pretrained import read_start

    for role in trained_optimisers(config):
        section = getattr(config, role)
        if not section.pretrained:
            continue
        start, said = read_start(section.pretrained, role, classes), list[str]()
        with name_role(role):
            build_network(
                section, classes=len(classes), image_shape=image_shape, seed=0, weights=start.weights, note=said.append
            )
        yield from (f"{role}: {sentence}." for sentence in said)
        yield from start.remarks
    yield from describe_inputs(config)


def check_capture(config: Config, prepared: "Prepared") -> Iterator[str]:
    """Runs the step on fake tensors, with no arithmetic and no GPU: each reason why it cannot be one CUDA graph."""
    from fastmpl.analysis.fake_run import find_capture_faults

    if config.system.graph == "off":
        yield 'graph   none: system.graph = "off"'
        return
    if not is_capturable(config):
        yield f"graph   none: {NOT_CAPTURABLE}"
        return
    faults = find_capture_faults(
        config, classes=len(prepared.arrays.classes), image_shape=_image_shape(config, prepared)
    )
    for fault in faults:
        yield f"graph   {fault}"
    if not faults:
        yield "graph   the whole step can be one CUDA graph"


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
    from fastmpl.run.expected_inputs import settle_inputs  # imports torch

    config = settle_inputs(config)
    yield "output  " + check_output(config)
    prepared = yield from check_data(config)
    yield from check_networks(config, prepared)
    yield from check_capture(config, prepared)
