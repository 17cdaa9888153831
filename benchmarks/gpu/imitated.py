"""The CPU under the tests' stand-in for torch.cuda: the one place where a benchmark imports from the tests."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.step.emulated_cuda import Cuda


@contextmanager
def imitated_cuda() -> Iterator[None]:
    """Streams and graphs of torch.cuda are imitated within the block."""
    with pytest.MonkeyPatch.context() as patch:
        Cuda(patch)
        yield
