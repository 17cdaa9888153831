"""Chooses the settings of a first run on a user's pictures, by their number, their size and the machine; measures its time.

The recipe for a CPU was found on `tests/shapes.py`: five classes of bright shapes on textures, 10 labels a class, 300
unlabelled pictures of 40 pixels. Two views that agree (`uda`) with a small Wide ResNet and AdamW ends at 80.7 and
78.7 % of the test pictures (two seeds, by hand, on the set it was chosen on), after 240 CPU seconds. The recipe for a GPU
is not measured.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import numpy as np
import torch
from PIL import Image

from fastmpl.analysis.fake_run import make_fake_batch
from fastmpl.config import Config
from fastmpl.data.batch import Batch
from fastmpl.data.errors import DataError
from fastmpl.data.files.decode import FORMATS
from fastmpl.data.readers.tree import Tree
from fastmpl.run.build import assemble

SIZES: Final = (24, 32, 48, 64, 96, 128, 160, 192, 224)
LARGEST_ON_CPU: Final = 32  # pixels; a step's time grows with their square
SMALL_PICTURES: Final = 64  # pixels of a picture that loses little at 24, and for which a Wide ResNet suits a GPU
LOOKED_AT: Final = 200  # images whose size is read
HELD_BACK: Final = 5  # images a class that validation needs to mean something
LARGEST_VALIDATION: Final = 100  # images a class
ROOM: Final = 10  # images, of which a batch leaves one out
QUICK: Final = 4  # times fewer steps
TIMED_STEPS: Final = 2
BESIDE_STEPS: Final = 1.15  # of the steps' time: views, evaluations and checkpoints


class Recipe(NamedTuple):
    """The settings of a first run, and what they were chosen from."""

    median_side: int  # of the pictures, the shorter one, in pixels
    smallest_class: int  # its labelled images
    method: str
    model: str
    steps: int
    size: int
    validation: int
    batch_labelled: int
    batch_unlabelled: int
    rand_augment: tuple[int, int]
    shift: float
    cutout: float
    optimiser: str
    lr: float
    weight_decay: float
    average: float
    uda_weight: float
    uda_threshold: float
    uda_temperature: float
    uda_ramp: int


def measure_side(root: Path, names: Sequence[str]) -> int:
    """The median of the shorter sides of up to 200 images, evenly chosen; 0 where none can be opened."""
    sides = []
    for name in names[:: max(1, len(names) // LOOKED_AT)]:
        try:
            with Image.open(root / name, formats=FORMATS) as image:
                sides.append(min(image.size))
        except Exception:  # a decoder may raise anything on damaged bytes; `fastmpl check` lists such files
            continue
    return int(median(sides)) if sides else 0


def _leave_room(images: int) -> int:
    """A batch of nearly all `images`: nobody has decoded them yet, and of ten one may be unusable."""
    return images - -(-images // ROOM)


def choose_recipe(tree: Tree, *, gpu: bool, quick: bool = False) -> Recipe:
    """Chooses settings for the labelled pictures of `tree`. Raises DataError if there are none that can be read.

    quick: a quarter of the steps.
    """
    counts = np.bincount(tree.labelled.labels, minlength=len(tree.classes)).tolist()
    if not all(counts):
        empty = tree.labelled_folder / tree.classes[counts.index(0)]
        raise DataError(f"{empty} has no images. Put images there, or remove the folder.")
    side = measure_side(tree.root, tree.labelled.names)
    if not side:
        raise DataError(f"none of the files in {tree.labelled_folder} can be read as an image.")
    held_back = min(min(counts) // 5, LARGEST_VALIDATION)
    validation = held_back * len(counts) if held_back >= HELD_BACK else 0
    labelled = max(2, min(64, _leave_room(sum(counts) - validation)))
    choose = _choose_for_gpu if gpu else _choose_for_cpu
    recipe = choose(side, min(counts), validation, labelled)
    unlabelled = len(tree.unlabelled.names) or sum(counts) - validation  # labelled images stand in where there are none
    recipe = recipe._replace(batch_unlabelled=min(recipe.batch_unlabelled, max(2, _leave_room(unlabelled))))
    return recipe._replace(steps=recipe.steps // QUICK, uda_ramp=recipe.uda_ramp // QUICK) if quick else recipe


def _choose_for_cpu(side: int, smallest: int, validation: int, labelled: int) -> Recipe:
    size = SIZES[0] if side < SMALL_PICTURES else LARGEST_ON_CPU
    return Recipe(
        median_side=side,
        smallest_class=smallest,
        method="uda",
        model="wrn_16_1",
        steps=800,
        size=size,
        validation=validation,
        batch_labelled=labelled,
        batch_unlabelled=max(2, labelled * 3 // 2),
        rand_augment=(2, 15),
        shift=0.2,
        cutout=0.0,
        optimiser="adamw",
        lr=0.003,
        weight_decay=0.05,
        average=0.98,
        uda_weight=4.0,
        uda_threshold=0.8,
        uda_temperature=0.5,
        uda_ramp=200,
    )


def _choose_for_gpu(side: int, smallest: int, validation: int, labelled: int) -> Recipe:
    size = max((size for size in SIZES if size <= side), default=SIZES[0])
    return Recipe(
        median_side=side,
        smallest_class=smallest,
        method="mpl",
        model="wrn_28_2" if size <= SMALL_PICTURES else "timm:resnet50",
        steps=3000,
        size=size,
        validation=validation,
        batch_labelled=labelled,
        batch_unlabelled=7 * labelled,
        rand_augment=(2, 10),
        shift=0.125,
        cutout=0.5,
        optimiser="sgd",
        lr=0.05,
        weight_decay=5e-4,
        average=0.995,
        uda_weight=8.0,
        uda_threshold=0.6,
        uda_temperature=0.7,
        uda_ramp=1000,
    )


def measure_seconds(config: Config, classes: int) -> float:
    """The seconds that a run of `config` takes here, from the time of two of its steps on random images."""
    shape = (config.data.channels, config.data.image_size, config.data.image_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainee = assemble(config, classes=classes, image_shape=shape, device=device, fixed_teacher=torch.nn.Identity)
    empty = make_fake_batch(config, shape, classes)
    parts = (part if part is None or not part.is_floating_point() else torch.rand(part.shape) for part in empty)
    batch = Batch(*parts).to(device)  # type: ignore[arg-type]
    trainee.step(batch)  # allocates, and chooses kernels
    began = time.perf_counter()
    for _ in range(TIMED_STEPS):
        report = trainee.step(batch)
    float(report.student_loss)  # waits for the device
    return (time.perf_counter() - began) / TIMED_STEPS * config.run.steps * BESIDE_STEPS
