"""The imitated GPU as a fixture."""

from collections.abc import Iterator

import pytest

from fastmpl.step import step_graph
from tests.imitated_gpu.device import ImitatedGpu
from tests.imitated_gpu.steps import WARMUP


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImitatedGpu]:
    monkeypatch.setattr(step_graph, "WARMUP", WARMUP)
    with ImitatedGpu() as made:
        yield made
