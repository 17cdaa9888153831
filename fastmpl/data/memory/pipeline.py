"""The DALI pipeline of images in memory: makes a weak and a strong view of each, normalised, on a CPU or a GPU.

No random operator of DALI is used. Every random number is an input that we draw from the key of the image, so that the
step alone is the position of a stream, and any number of ranks sees the same views.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastmpl.data.dali import Node, fn, normalise, pipeline_def, rand_augment, select, signed_bin, tensor, types
from fastmpl.data.device_stream import upload
from fastmpl.data.memory import views
from fastmpl.data.normalise import Normalisation
from fastmpl.data.sampler import Sampler
from fastmpl.data.view_stream import Views

_ALIAS = re.compile(r"WARNING: `nvidia\.dali\.fn\.experimental\.(filter|equalize)` is now deprecated")
_TRANSLATION = 100 / 224  # RandAugment's largest shift as a fraction of the side


class ImageStream:
    """A ViewStream of `images` uint8 [N, H, W, 3 or 1] in the order of `sampler`, from `step` on; float32 views.

    Images of another size than `how.size` are resized. Grey images get as many channels as `normalisation` has.
    `channels_last`: whether the views [n, C, size, size] have torch's channels-last memory format. `device`: the number
    of a CUDA device, or None for the CPU.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        sampler: Sampler,
        how: views.Augmentation,
        normalisation: Normalisation,
        *,
        two_views: bool,
        step: int = 0,
        channels_last: bool = True,
        threads: int = 1,
        device: int | None = None,
    ) -> None:
        self._images = images
        self._sampler = sampler
        self._how = how
        self._normalisation = normalisation
        self._two_views = two_views
        self._step = step
        self._first = step
        self._channels_last = channels_last
        self._device = device
        augments = two_views and how.operations > 0  # a pipeline with conditionals is slower even if it uses none
        with _without_alias_warnings():
            define = pipeline_def(self._define, enable_conditionals=augments, exec_dynamic=True)
            self._pipeline = define(batch_size=sampler.batch, num_threads=threads, device_id=device, seed=0)
            self._pipeline.build()

    def next(self) -> Views:
        index = self._sampler.samples(self._step).index
        self._step += 1
        outputs = [tensor(output, channels_last=self._channels_last) for output in self._pipeline.run()]
        device = torch.device("cpu" if self._device is None else f"cuda:{self._device}")
        return Views(outputs[0], outputs[1] if self._two_views else None, upload(index, device))

    def _source(self, iteration: int) -> tuple[NDArray[Any], ...]:
        """The inputs of one run. DALI asks for them ahead of time, so they depend on the iteration's number alone."""
        rows = self._sampler.samples(self._first + iteration)
        u = self._sampler.uniform(rows, self._how.columns)
        inputs = (self._images[rows.index], *views.draw_weak(u, self._how))
        if not self._two_views:
            return inputs
        drawn = views.draw_strong(u, self._how)
        cut = (drawn.cut_start, drawn.cut_shape) if self._how.cut > 0 else ()
        return (*inputs, drawn.start, drawn.mirror, *drawn.operation, *drawn.sign, *cut)

    def _define(self) -> Node:
        how, operations = self._how, self._how.operations if self._two_views else 0
        kinds = [types.UINT8, types.INT32, types.INT32]
        if self._two_views:
            kinds += [types.INT32] * (2 + 2 * operations) + [types.FLOAT] * (2 if how.cut > 0 else 0)
        inputs = fn.external_source(
            source=self._source,
            num_outputs=len(kinds),
            batch=True,
            dtype=kinds,
            layout=["HWC"] + [""] * (len(kinds) - 1),
        )
        image = self._prepare(inputs[0])
        weak = self._normalise(self._window(image, inputs[1]), inputs[2])
        if not self._two_views:
            return weak
        start, mirror, *chosen = inputs[3:]
        strong = self._window(image, start)
        if operations > 0:
            strong = _rand_augment(strong, chosen[:operations], chosen[operations : 2 * operations], how)
        strong = self._normalise(strong, mirror)  # the flip may come last: RandAugment draws its signs evenly
        if how.cut > 0:  # after normalising, where 0 is the data set's mean
            strong = fn.erase(strong, anchor=chosen[-2], shape=chosen[-1], axis_names="HW", fill_value=0.0)
        return weak, strong

    def _prepare(self, image: Node) -> Node:
        """Copies to the device, resizes, and converts the channels: in the order that moves the fewest bytes."""
        if self._device is not None:
            image = image.gpu()
        if self._images.shape[1:3] != (self._how.size, self._how.size):
            kind = types.INTERP_CUBIC if self._how.interpolation == "bicubic" else types.INTERP_LINEAR
            image = fn.resize(image, size=[self._how.size] * 2, interp_type=kind, antialias=True)
        if self._images.shape[3] < len(self._normalisation.mean):
            image = fn.color_space_conversion(image, image_type=types.GRAY, output_type=types.RGB)
        return image

    def _window(self, image: Node, start: Node) -> Node:
        size = [self._how.size] * 2
        return fn.slice(image, start=start, shape=size, axes=[0, 1], out_of_bounds_policy="pad", fill_values=0)

    def _normalise(self, image: Node, mirror: Node) -> Node:
        return normalise(image, mirror, self._normalisation, channels_last=self._channels_last)


def _rand_augment(image: Node, operation: list[Node], sign: list[Node], how: views.Augmentation) -> Node:
    suite = rand_augment.get_rand_augment_suite(use_shape=False, max_translate_abs=round(_TRANSLATION * how.size))
    assert len(suite) == views.OPERATIONS
    for k in range(how.operations):
        magnitude = signed_bin(how.magnitude, random_sign=sign[k])
        image = select(suite, operation[k], data=image, magnitude_bin=magnitude, num_magnitude_bins=views.MAGNITUDES)
    return image


@contextmanager
def _without_alias_warnings() -> Iterator[None]:
    """Hides warnings about two deprecated names, which DALI's own RandAugment suite uses and no user can change.

    DALI switches filters of warnings off, so these are dropped where they would be shown.
    """
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_others(message: Warning | str, *where: Any, **options: Any) -> None:
            if not _ALIAS.match(str(message)):
                show(message, *where, **options)

        warnings.showwarning = show_others
        yield
