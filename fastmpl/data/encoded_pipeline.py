"""The DALI pipeline of encoded images: decoded once, cropped twice, augmented at crop size, normalised; CPU or GPU.

As with arrays every draw is an input made by us, and so are the bytes: a thread reads them, in our order, from wherever
they are stored. What differs between CPU and GPU is where the pictures lie, and whose resize is used.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastmpl.data.crops import Crops, Drawn, draw
from fastmpl.data.dali import Node, fn, normalise, pipeline_def, tensor, types
from fastmpl.data.encoded import Encoded
from fastmpl.data.normalise import Normalisation
from fastmpl.data.order import Order
from fastmpl.data.portable import Picture, portable
from fastmpl.data.rand_augment_dali import apply_layer
from fastmpl.data.settings import DataSettings
from fastmpl.data.stream import Views
from fastmpl.data.windows import Resizer

READERS = 4  # threads that read files of one stream, at least; each waits for a disk

Read = Callable[[int], Picture]


class Machine(NamedTuple):
    """Where and with what a pipeline runs. Decides when pixels are made, never which."""

    device: int | None = None  # a CUDA device's number; None: the CPU
    threads: int = 1
    ahead: int = 2  # batches that DALI makes before they are asked for
    decoder_load: float = 0.65  # share of JPEGs for a GPU's decoding engine
    decoder_padding: tuple[int, int] = (16, 8)  # MiB of a GPU's and of the host's memory, of each thread

    @property
    def place(self) -> torch.device:
        return torch.device("cpu" if self.device is None else f"cuda:{self.device}")


def machine(settings: DataSettings, device: int | None, threads: int) -> Machine:
    """The machine that the [data] section asks for."""
    return Machine(device, threads, settings.prefetch, settings.decoder_load, settings.decoder_padding)


def decode(content: Node, where: Machine) -> Node:
    """Upright RGB pictures, uint8 HWC, of their own sizes."""
    if where.device is None:
        return fn.decoders.image(content, output_type=types.RGB)
    on_device, on_host = (mebibytes * 2**20 for mebibytes in where.decoder_padding)
    return fn.decoders.image(
        content,
        device="mixed",
        output_type=types.RGB,
        hw_decoder_load=where.decoder_load,
        device_memory_padding=on_device,
        host_memory_padding=on_host,
    )


def resize(image: Node, windows: list[Node], size: int, where: Machine) -> list[Node]:
    """The windows (y, x, height, width) of each picture, `size` pixels square."""
    if where.device is None:
        made = fn.python_function(
            image,
            *windows,
            function=Resizer(size, where.threads),
            batch_processing=True,
            num_outputs=len(windows),
            output_layouts=["HWC"] * len(windows),
        )
        return list(made) if len(windows) > 1 else [made]
    made = []
    for window in windows:
        start = fn.cast(fn.slice(window, 0, 2, axes=[0]), dtype=types.FLOAT)
        shape = fn.cast(fn.slice(window, 2, 2, axes=[0]), dtype=types.FLOAT)
        made.append(
            fn.resize(
                image,
                size=[size, size],
                roi_start=start,
                roi_end=start + shape,
                interp_type=types.INTERP_LINEAR,
                antialias=True,
            )
        )
    return made


class EncodedStream:
    """A ViewStream over encoded `images` in `order`, from `step` on; channels-last tensors [n, 3, size, size].

    `read` gives the picture of an image of the data set; by default what is stored. Raises what it raises.
    """

    def __init__(
        self,
        images: Encoded,
        order: Order,
        how: Crops,
        normalisation: Normalisation,
        where: Machine,
        *,
        two_views: bool,
        step: int = 0,
        dtype: torch.dtype = torch.float32,
        read: Read | None = None,
    ) -> None:
        self._read = read or (lambda index: portable(images.read(index)))
        self._order, self._how, self._normalisation, self._where = order, how, normalisation, where
        self._two_views, self._dtype = two_views, dtype
        self._first = self._step = step
        self._readers = ThreadPoolExecutor(max(READERS, where.threads))
        self._pipeline = pipeline_def(self._define, enable_conditionals=True, exec_dynamic=True)(
            batch_size=order.batch,
            num_threads=where.threads,
            device_id=where.device,
            prefetch_queue_depth=where.ahead,
            seed=0,
        )
        self._pipeline.build()

    def next(self) -> Views:
        index = torch.from_numpy(self._order.rows(self._step).index)
        self._step += 1
        made = [tensor(output, channels_last=True, dtype=self._dtype) for output in self._pipeline.run()]
        return Views(made[0], made[1] if self._two_views else None, index.to(self._where.place))

    def _pictures(self, index: NDArray[np.int64]) -> list[Picture]:
        return list(self._readers.map(self._read, index.tolist()))

    def _source(self, iteration: int) -> tuple[Any, ...]:
        """The inputs of one run: DALI asks ahead of time, so this depends on the iteration's number alone."""
        rows = self._order.rows(self._first + iteration)
        pictures = self._pictures(rows.index)
        height, width = (np.array(side) for side in zip(*((p.height, p.width) for p in pictures), strict=True))
        return [picture.content for picture in pictures], *self._numbers(
            draw(self._order, rows, height, width, self._how)
        )

    def _numbers(self, drawn: Drawn) -> list[NDArray[Any]]:
        weak, strong = drawn
        if not self._two_views:
            return [weak.window, weak.mirror]
        layers = [part for layer in strong.layers for part in layer]
        return [
            weak.window,
            weak.mirror,
            strong.view.window,
            strong.view.mirror,
            strong.cut_start,
            strong.cut_shape,
            *layers,
        ]

    def _inputs(self) -> list[Node]:
        view, layer = [types.INT32, types.INT32], [types.INT32, types.FLOAT, types.FLOAT]
        kinds = [types.UINT8, *view]
        if self._two_views:
            kinds += [*view, types.FLOAT, types.FLOAT, *layer * self._how.operations]
        return list(fn.external_source(source=self._source, num_outputs=len(kinds), batch=True, dtype=kinds))

    def _define(self) -> Node:
        content, *numbers = self._inputs()
        image = decode(content, self._where)
        if not self._two_views:
            (weak,) = resize(image, [numbers[0]], self._how.size, self._where)
            return self._normalise(weak, numbers[1])
        weak, strong = resize(image, [numbers[0], numbers[2]], self._how.size, self._where)
        layers = numbers[6:]
        for k in range(self._how.operations):
            strong = apply_layer(strong, *layers[3 * k : 3 * k + 3], gpu=self._where.device is not None)
        strong = self._normalise(strong, numbers[3])
        if self._how.cut > 0:  # after normalising, where 0 is the mean
            strong = fn.erase(strong, anchor=numbers[4], shape=numbers[5], axis_names="HW", fill_value=0.0)
        return self._normalise(weak, numbers[1]), strong

    def _normalise(self, image: Node, mirror: Node) -> Node:
        return normalise(image, mirror, self._normalisation, channels_last=True)
