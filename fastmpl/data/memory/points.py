"""Views of points in the plane: the weak view is the point itself, the strong view is the point with Gaussian noise."""

import numpy as np
import torch
from numpy.typing import NDArray

from fastmpl.data.device_stream import upload
from fastmpl.data.sampler import Sampler
from fastmpl.data.view_stream import Views

JITTER = 0.2  # standard deviation, in the units of the points


class PointStream:
    """A ViewStream of `points` [N, 2] in the order of `sampler`, from `step` on; it needs no DALI."""

    def __init__(
        self,
        points: NDArray[np.float32],
        sampler: Sampler,
        *,
        two_views: bool,
        step: int = 0,
        device: int | None = None,
    ) -> None:
        self._points = points
        self._sampler = sampler
        self._two_views = two_views
        self._step = step
        self._device = torch.device("cpu" if device is None else f"cuda:{device}")

    def next(self) -> Views:
        rows = self._sampler.samples(self._step)
        self._step += 1
        index = upload(rows.index, self._device)
        weak = upload(self._points[rows.index], self._device)
        if not self._two_views:
            return Views(weak, None, index)
        jitter = upload(self._sampler.normal(rows, self._points.shape[1]), self._device)
        return Views(weak, weak + JITTER * jitter, index)
