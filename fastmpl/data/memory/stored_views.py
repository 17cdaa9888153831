"""Views of images whose features are stored: one of the stored views of each image, drawn by image and epoch."""

import numpy as np
import torch
from numpy.typing import NDArray

from fastmpl.data.device_stream import upload
from fastmpl.data.sampler import Sampler
from fastmpl.data.view_stream import Views

Rows = NDArray[np.float32]


class StoredViewStream:
    """A ViewStream of features [N, F] in the order of `sampler`, from `step` on.

    `stored` [N, 2V, F]: V weak and then V strong views of each image. Without them both views are the image as it is
    evaluated, a row of `centre`.
    """

    def __init__(
        self,
        centre: Rows,
        stored: Rows | None,
        sampler: Sampler,
        *,
        two_views: bool,
        step: int = 0,
        device: int | None = None,
    ) -> None:
        self._centre, self._stored = centre, stored
        self._sampler, self._two_views, self._step = sampler, two_views, step
        self._device = torch.device("cpu" if device is None else f"cuda:{device}")

    def next(self) -> Views:
        rows = self._sampler.samples(self._step)
        self._step += 1
        index = upload(rows.index, self._device)
        if self._stored is None:
            both = upload(self._centre[rows.index], self._device)
            return Views(both, both if self._two_views else None, index)
        views = self._stored.shape[1] // 2
        # of the open interval (0, 1): the product stays below `views`
        chosen = (self._sampler.uniform(rows, 2) * views).astype(np.int64)
        weak = upload(self._stored[rows.index, chosen[:, 0]], self._device)
        if not self._two_views:
            return Views(weak, None, index)
        strong = upload(self._stored[rows.index, views + chosen[:, 1]], self._device)
        return Views(weak, strong, index)
