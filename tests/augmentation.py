"""RandAugment's operations, ours and torchvision's, on the same images with the same amounts: for a test and a table."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from fastmpl.data.dali import Node, fn, pipeline_def, types
from fastmpl.data.streaming.rand_augment import FILL, TRANSLATION, Operation, layer
from fastmpl.data.streaming.rand_augment_dali import apply_layer

Images = NDArray[np.uint8]
NAMES = {operation: operation.name.title().replace("_", "").replace("Autoc", "AutoC") for operation in Operation}
MAGNITUDES = (9, 17, 30)


def images(count: int = 4, size: int = 128) -> Images:
    """Rough and smooth fields whose channels use different ranges of grey values, so that stretching them shows."""
    rng = np.random.default_rng(3)
    grids = np.clip(rng.normal(128, 40, (count, size // 8, size // 8, 3)), 0, 255).astype(np.uint8)
    smooth = np.stack(
        [np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)) for grid in grids]
    )
    span, least = rng.uniform(0.5, 0.8, (2, count, 1, 1, 3))
    made = smooth * span + 50 * least + rng.normal(0, 5, smooth.shape)
    return np.clip(made, 0, 255).astype(np.uint8)


class Case(NamedTuple):
    """One operation with its sign (0: plus) and magnitude of 30."""

    operation: Operation
    sign: int = 0
    magnitude: int = 17


def ours(cases: Sequence[Case], of: Images) -> Images:
    """Every case of fastmpl on every image, [cases, images, H, W, 3], in one run of a pipeline."""
    count, size = of.shape[:2]
    drawn = [
        layer(np.full(count, c.operation, np.int32), np.full(count, c.sign, np.int32), c.magnitude, size) for c in cases
    ]
    inputs = (np.concatenate([of] * len(cases)), *(np.concatenate(part) for part in zip(*drawn, strict=True)))

    def pipe() -> Node:
        kinds = [types.UINT8, types.INT32, types.FLOAT, types.FLOAT]
        nodes = fn.external_source(
            source=lambda iteration: inputs, num_outputs=4, batch=True, dtype=kinds, layout=["HWC", "", "", ""]
        )
        return apply_layer(*nodes, gpu=False)

    pipeline = pipeline_def(pipe, enable_conditionals=True, exec_dynamic=True)(
        batch_size=len(inputs[0]), num_threads=1, device_id=None, prefetch_queue_depth=1, seed=0
    )
    pipeline.build()
    return np.asarray(pipeline.run()[0].as_tensor()).reshape(len(cases), *of.shape)


def theirs(case: Case, of: Images, *, tensors: bool) -> Images:
    """A case of torchvision on every image, by PIL or on tensors."""
    operation, sign, magnitude = case
    rand_augment, name, size = v2.RandAugment(1, magnitude, fill=FILL), NAMES[operation], of.shape[1]
    magnitudes, signed = rand_augment._AUGMENTATION_SPACE[name]
    table = magnitudes(31, size, size)
    amount = 0.0 if table is None else float(table[magnitude])
    if name.startswith("Translate"):  # torchvision's largest is 150 pixels of 331
        amount = float(round(TRANSLATION * size * magnitude / 30))
    amount = -amount if signed and sign else amount
    made = []
    for image in of:
        given = torch.from_numpy(image).permute(2, 0, 1) if tensors else Image.fromarray(image)
        fill = {type(given): [FILL] * 3}
        done = rand_augment._apply_image_or_video_transform(given, name, amount, v2.InterpolationMode.NEAREST, fill)
        made.append(done.permute(1, 2, 0).numpy() if tensors else np.asarray(done))
    return np.stack(made)


def cases() -> list[Case]:
    """Every operation, with both signs where it has two, at three magnitudes."""
    signed = range(Operation.SHEAR_X, Operation.POSTERIZE)
    return [Case(op, sign, m) for op in Operation for sign in range(1 + (op in signed)) for m in MAGNITUDES]
