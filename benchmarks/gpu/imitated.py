"""A GPU that the CPU imitates, by the tests' stand-in: the one place where a benchmark imports from the tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from fastmpl.step import step_graph
from tests.imitated_gpu.device import ImitatedGpu

WARMUP = 2  # eager steps before a capture: the imitation chooses no algorithms


@contextmanager
def imitated_gpu() -> Iterator[torch.device]:
    """torch.cuda has one imitated device within the block."""
    with patch.object(step_graph, "WARMUP", WARMUP), ImitatedGpu():
        yield torch.device("cuda", 0)
