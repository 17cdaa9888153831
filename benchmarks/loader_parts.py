"""Where the time of a sample goes: CPU milliseconds of each operator, ours beside what PIL and torchvision take for it.

Ours is measured by pipelines that grow by one operator: the difference is the operator's. One thread each.
"""

import io
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from benchmarks.loaders import MAGNITUDE, SIZE
from benchmarks.records import Row
from fastmpl.data.dali import Node, fn, normalise, pipeline_def, types
from fastmpl.data.files.portable import make_portable
from fastmpl.data.normalise import IMAGENET
from fastmpl.data.streaming.encoded_pipeline import Machine, decode, resize
from fastmpl.data.streaming.rand_augment import Operation, layer
from fastmpl.data.streaming.rand_augment_dali import apply_layer

WINDOW = (40, 60, 270, 320)  # of an area that is the mean over random windows
RUNS = 4
Define = Callable[..., Any]
_THEIRS = {
    Operation.SHEAR_X: "ShearX", Operation.TRANSLATE_X: "TranslateX", Operation.ROTATE: "Rotate",
    Operation.BRIGHTNESS: "Brightness", Operation.COLOR: "Color", Operation.CONTRAST: "Contrast",
    Operation.SHARPNESS: "Sharpness", Operation.POSTERIZE: "Posterize", Operation.SOLARIZE: "Solarize",
    Operation.AUTOCONTRAST: "AutoContrast", Operation.EQUALIZE: "Equalize",
}  # fmt: skip  # a shear and a shift along y take what those along x take


def _least(call: Callable[[], object], images: int) -> float:
    """The least CPU milliseconds of an image over several calls: what else the machine does only adds."""
    taken = []
    for _ in range(RUNS):
        start = time.process_time()
        call()
        taken.append(1e3 * (time.process_time() - start) / images)
    return min(taken)


def _ours(define: Define, inputs: tuple[Any, ...]) -> float:
    """CPU milliseconds of an image of a pipeline over `inputs`."""
    count = len(inputs[0])
    dtypes = {"uint8": types.UINT8, "int32": types.INT32, "float32": types.FLOAT}

    def pipe() -> Node:
        asked = [dtypes[str(np.asarray(column[0]).dtype)] for column in inputs]
        nodes = fn.external_source(
            source=lambda iteration: inputs, num_outputs=len(inputs), batch=True, dtype=asked,
            layout=["HWC" if np.asarray(column[0]).ndim == 3 else "" for column in inputs],
        )  # fmt: skip
        return define(*nodes)

    built = pipeline_def(pipe, enable_conditionals=True, exec_dynamic=True)(
        batch_size=count, num_threads=1, device_id=None, prefetch_queue_depth=1, seed=0
    )
    built.build()
    built.run()
    return _least(built.run, count)


def _theirs(one: Callable[[Any], object], inputs: Iterable[Any]) -> float:
    """CPU milliseconds of an image of a function."""
    every = list(inputs)
    one(every[0])
    return _least(lambda: [one(each) for each in every], len(every))


def _row(name: str, ours: float, theirs: float | None) -> Row:
    return {
        "operator": name,
        "fastmpl": f"{ours:.3f}",
        "PIL and torchvision": "" if theirs is None else f"{theirs:.3f}",
    }


def _operations(crops: NDArray[np.uint8]) -> list[Row]:
    """Each of RandAugment's operations on all images, without what handing the images on takes."""
    images = [Image.fromarray(crop) for crop in crops]
    rand_augment, base = v2.RandAugment(1, MAGNITUDE, fill=128), _ours(lambda image: image, (crops,))
    made = []
    for operation, name in _THEIRS.items():
        drawn = layer(np.full(len(crops), operation, np.int32), np.zeros(len(crops), np.int32), MAGNITUDE, SIZE)
        ours = _ours(lambda *nodes: apply_layer(*nodes, gpu=False), (crops, *drawn)) - base
        magnitudes, _ = rand_augment._AUGMENTATION_SPACE[name]
        table = magnitudes(31, SIZE, SIZE)
        amount = 0.0 if table is None else float(table[MAGNITUDE])

        def one(image: Image.Image, name: str = name, amount: float = amount) -> object:
            fill = {Image.Image: [128] * 3}
            return rand_augment._apply_image_or_video_transform(image, name, amount, v2.InterpolationMode.NEAREST, fill)

        made.append(_row(f"RandAugment: {name}", ours, _theirs(one, images)))
    return made


def table(files: list[Path]) -> list[Row]:
    """One row an operator; CPU milliseconds of one image, or of one of its two views."""
    contents = [np.fromfile(file, np.uint8) for file in files]
    windows, where = np.tile(np.array(WINDOW, np.int32), (len(files), 1)), Machine()
    y, x, height, width = WINDOW
    read = _least(lambda: [make_portable(np.fromfile(file, np.uint8)) for file in files], len(files))
    handed = _ours(lambda content: fn.cast(content, dtype=types.UINT8), (contents,))
    decoded = _ours(lambda content: decode(content, where), (contents,)) - handed
    region = _ours(
        lambda content: fn.decoders.image_slice(content, start=[y, x], shape=[height, width], axes=[0, 1]), (contents,)
    )
    region -= handed
    resized = _ours(
        lambda content, window: resize(decode(content, where), [window], SIZE, where)[0], (contents, windows)
    )
    images = [Image.open(io.BytesIO(content.tobytes())).convert("RGB") for content in contents]
    crops = np.stack([np.asarray(F.resized_crop(image, y, x, height, width, [SIZE, SIZE])) for image in images])
    whole = [Image.fromarray(crop) for crop in crops]
    base = _ours(lambda image: image, (crops,))
    normal = _ours(lambda image: normalise(image, 1, IMAGENET, channels_last=True), (crops,)) - base
    to_float = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.2] * 3)])
    return [
        _row("read the file, walk its markers", read, None),
        _row("hand the bytes to DALI", handed, None),
        _row("decode", decoded, _theirs(lambda file: Image.open(file).convert("RGB"), files)),
        _row("decode a window alone, for comparison", region, None),
        _row("crop and resize, a view", resized - decoded - handed,
             _theirs(lambda image: F.resized_crop(image, y, x, height, width, [SIZE, SIZE]), images)),
        _row("flip and normalise, a view", normal, _theirs(lambda image: to_float(F.horizontal_flip(image)), whole)),
        *_operations(crops),
    ]  # fmt: skip
