"""The imitated CUDA graphs with what `PartialGraphs` takes beside: streams without number, captures into a pool."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.step.emulated_cuda import Cuda, Graph, Stream


class Pooled(Cuda):
    """Stands in for torch.cuda; a pool is a name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))

    def Stream(self, device: object) -> Stream:
        return Stream(self, "capture")

    @contextmanager
    def graph(self, graph: Graph, *, stream: Stream, capture_error_mode: str, pool: object = None) -> Iterator[None]:
        with super().graph(graph, stream=stream, capture_error_mode=capture_error_mode):
            yield
