"""The imitated CUDA graphs with what `PassGraphs` takes beside: streams without number, pools."""

import pytest
import torch

from tests.step.emulated_cuda import Cuda, Stream


class Pooled(Cuda):
    """Stands in for torch.cuda; a pool is a name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))

    def Stream(self, device: object) -> Stream:
        return Stream(self, "capture")
