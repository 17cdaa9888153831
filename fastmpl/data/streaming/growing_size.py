"""Progressive resolution: training begins with small images, which cost less, and reaches the full size before its end.

The size is a function of the step and grows in strides, so that shapes do not change within a stage. The pipeline of a
stage is built when its first batch is made.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from fastmpl.data.view_stream import Views, ViewStream

STRIDE: Final = 32  # pixels; what most networks divide their input by


class Growth(NamedTuple):
    """The size grows from `start` pixels at step 0 to `end` at step `steps`; `start` = 0: always `end`."""

    start: int
    end: int
    steps: int

    def size(self, step: int) -> int:
        """Height and width of the images of `step`, in pixels."""
        if not self.start or step >= self.steps:
            return self.end
        return self.start + STRIDE * ((self.end - self.start) * step // (self.steps * STRIDE))


class GrowingStream:
    """A ViewStream whose images grow: `open_stream` opens the stream of a size at a step."""

    def __init__(self, open_stream: Callable[[int, int], ViewStream], growth: Growth, step: int = 0) -> None:
        self._open, self._growth, self._step = open_stream, growth, step
        self._size = growth.size(step)
        self._stream = open_stream(self._size, step)

    def next(self) -> Views:
        size = self._growth.size(self._step)
        if size != self._size:
            self._size, self._stream = size, self._open(size, self._step)
        self._step += 1
        return self._stream.next()
