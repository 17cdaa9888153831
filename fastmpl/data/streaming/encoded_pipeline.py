"""The DALI pipeline of encoded images: decodes once, crops twice, augments at crop size, normalises; on a CPU or a GPU.

As in the pipeline of images in memory, every random number is an input that we draw. The bytes are an input as well: a
thread reads them in the order of the sampler, wherever they are stored. On a GPU DALI resizes, on a CPU torch does.
"""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from fastmpl.data.dali import Node, fn, normalise, pipeline_def, tensor, types
from fastmpl.data.device_stream import KeepAlive, upload
from fastmpl.data.normalise import Normalisation
from fastmpl.data.sampler import Sampler
from fastmpl.data.settings import DataSettings
from fastmpl.data.streaming.crops import Crops, ViewNumbers, bounds, draw
from fastmpl.data.streaming.rand_augment_dali import apply_layer
from fastmpl.data.streaming.reading import Pictures, Reader
from fastmpl.data.streaming.windows import Resizer
from fastmpl.data.view_stream import Views


class Machine(NamedTuple):
    """Where a pipeline runs, and with how many threads. It decides when pixels are made, never which."""

    device: int | None = None  # a CUDA device's number; None: the CPU
    threads: int = 1
    ahead: int = 2  # batches that DALI makes before they are asked for
    decoder_load: float = 0.65  # share of JPEGs for a GPU's decoding engine

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu" if self.device is None else f"cuda:{self.device}")


def machine(settings: DataSettings, device: int | None, threads: int) -> Machine:
    """The Machine with what the [data] section asks for."""
    return Machine(device, threads, settings.prefetch, settings.decoder_load)


def decode_part(content: Node, start: Node, shape: Node) -> Node:
    """A part of each upright RGB picture, on a CPU. Of the rest only the entropy coding is decoded."""
    return fn.decoders.image_slice(content, start=start, shape=shape, axes=[0, 1], output_type=types.RGB)


def decode(content: Node, where: Machine) -> Node:
    """Upright RGB pictures, uint8 HWC, of their own sizes."""
    if where.device is None:
        return fn.decoders.image(content, output_type=types.RGB)
    return fn.decoders.image(content, device="mixed", output_type=types.RGB, hw_decoder_load=where.decoder_load)


def resize(image: Node, windows: list[Node], size: int, where: Machine) -> list[Node]:
    """Resizes the windows (y, x, height, width) of each picture to `size` pixels square."""
    if where.device is None:
        made = fn.python_function(
            image,
            *windows,
            function=Resizer(size, where.threads),
            batch_processing=True,
            num_outputs=len(windows),
            output_layouts=["HWC"] * len(windows),
        )
        return list(cast(list[Node], made)) if len(windows) > 1 else [made]
    on_gpu = []
    for window in windows:
        start = fn.cast(fn.slice(window, 0, 2, axes=[0]), dtype=types.FLOAT)
        shape = fn.cast(fn.slice(window, 2, 2, axes=[0]), dtype=types.FLOAT)
        on_gpu.append(
            fn.resize(
                image,
                size=[size, size],
                roi_start=start,
                roi_end=start + shape,
                interp_type=types.INTERP_LINEAR,
                antialias=True,
            )
        )
    return on_gpu


class EncodedStream:
    """A ViewStream of the pictures that `reader` reads in the order of `sampler`, from `step` on.

    Views are channels-last [n, 3, size, size]. Every picture reaches DALI in a form that it accepts. If DALI refuses one
    nevertheless, which ends its pipeline, another is built at the same step and gets those pictures already decoded.
    """

    def __init__(
        self,
        reader: Reader,
        sampler: Sampler,
        how: Crops,
        normalisation: Normalisation,
        where: Machine,
        *,
        two_views: bool,
        step: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._reader, self._sampler, self._how = reader, sampler, how
        self._normalisation, self._where = normalisation, where
        self._two_views, self._dtype = two_views, dtype
        self._step = self._first = step  # `_first`: the step of the pipeline's first run
        self._given: dict[int, Pictures] = {}  # by step, of the steps that DALI makes ahead
        self._converted = KeepAlive(where.torch_device)
        self._pipeline = self._build(step)

    def next(self) -> Views:
        """The next step's views. Raises DataError where an image and all images tried in its place cannot be read."""
        try:
            outputs = self._pipeline.run()
        except RuntimeError:
            outputs = self._run_again()
        given = self._given.pop(self._step)
        self._step += 1
        made = [tensor(output, channels_last=True) for output in outputs]
        views = [image.to(self._dtype) for image in made]
        if self._dtype != torch.float32:
            self._converted.keep(made)  # DALI gets its memory back once the GPU has converted it
        index = upload(given.rows.index, self._where.torch_device)
        return Views(views[0], views[1] if self._two_views else None, index, given.replaced)

    def _build(self, step: int) -> Node:
        """A pipeline whose first run is that of `step`."""
        self._first = step
        pipeline = pipeline_def(self._define, enable_conditionals=True, exec_dynamic=True)(
            batch_size=self._sampler.batch,
            num_threads=self._where.threads,
            device_id=self._where.device,
            prefetch_queue_depth=self._where.ahead,
            seed=0,
        )
        pipeline.build()
        return pipeline

    def _run_again(self) -> Node:
        """The outputs of this step, after DALI refused a picture of it or of a step that it makes ahead."""
        for given in self._given.values():
            self._reader.distrust(given.rows.index)
        self._given.clear()
        self._pipeline = self._build(self._step)
        return self._pipeline.run()

    def _source(self, iteration: int) -> tuple[Any, ...]:
        """The inputs of one run. DALI asks for them ahead of time, so they depend on the iteration's number alone."""
        step = self._first + iteration
        pictures, rows, _ = self._given[step] = self._reader.read(self._sampler.samples(step))
        sizes = np.array([(picture.height, picture.width) for picture in pictures])
        drawn = draw(self._sampler, rows, sizes[:, 0], sizes[:, 1], self._how)
        return [picture.content for picture in pictures], *self._decoded_parts(drawn), *self._numbers(drawn)

    def _decoded_parts(self, drawn: ViewNumbers) -> list[NDArray[Any]]:
        """Start and shape of the part to decode on a CPU, which holds both windows; moves the windows into that part."""
        if self._where.device is not None:  # a GPU decodes whole pictures
            return []
        windows = [drawn.weak.window, drawn.strong.crop.window] if self._two_views else [drawn.weak.window]
        start, shape = bounds(windows)
        for window in windows:
            window[:, :2] -= start
        return [start, shape]

    def _numbers(self, drawn: ViewNumbers) -> list[NDArray[Any]]:
        weak, strong = drawn
        if not self._two_views:
            return [weak.window, weak.mirror]
        layers = [part for layer in strong.layers for part in layer]
        return [
            weak.window,
            weak.mirror,
            strong.crop.window,
            strong.crop.mirror,
            strong.cut_start,
            strong.cut_shape,
            *layers,
        ]

    def _inputs(self) -> list[Node]:
        view, layer = [types.INT32, types.INT32], [types.INT32, types.FLOAT, types.FLOAT]
        part = [] if self._where.device is not None else [types.INT32, types.INT32]
        kinds = [types.UINT8, *part, *view]
        if self._two_views:
            kinds += [*view, types.FLOAT, types.FLOAT, *layer * self._how.operations]
        return list(
            cast(list[Node], fn.external_source(source=self._source, num_outputs=len(kinds), batch=True, dtype=kinds))
        )

    def _define(self) -> Node:
        content, *numbers = self._inputs()
        if self._where.device is None:
            start, shape, *numbers = numbers
            image = decode_part(content, start, shape)
        else:
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
