"""DALI on the imitated GPU: pipelines run on the CPU, and what they give lies on the device in memory of DALI.

DALI takes that memory back when the last tensor on it is dropped, and writes it at once: it does not wait for torch's
streams, and `record_stream` does not hold it. `memory` raises HazardError where the host does not know by then that all
reads are done, and overwrites the bytes.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from nvidia.dali.data_node import DataNode
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastmpl.data import dali
from fastmpl.data.memory import pipeline
from fastmpl.data.streaming import encoded_pipeline, evaluation_set
from tests.imitated_gpu.device import ImitatedGpu
from tests.imitated_gpu.faults import find_line
from tests.imitated_gpu.tensors import DeviceTensor


def lend(gpu: ImitatedGpu, numbers: Tensor) -> DeviceTensor:
    """A device tensor in memory of DALI. The hand-over of DLPack orders DALI's writing before the current stream."""
    inner = numbers.clone()
    block = gpu.memory.add(inner, gpu.timeline.current(), None, find_line(), "DALI")
    made = DeviceTensor(inner, block)
    gpu.memory.share(made, block)
    return made


def _on_cpu(define: Callable[..., Any]) -> Callable[..., Any]:
    """`pipeline_def` whose pipelines have no device."""

    def wrapped(function: Any, **options: Any) -> Any:
        build = define(function, **options)
        return lambda *args, **settings: build(*args, **(settings | {"device_id": None}))

    return wrapped


@contextmanager
def imitate_dali(gpu: ImitatedGpu) -> Iterator[None]:
    def decode(content: Any, where: Any) -> Any:
        return dali.fn.decoders.image(content, output_type=dali.types.RGB)

    with ExitStack() as held:
        held.enter_context(patch.object(dali, "from_dlpack", lambda output: lend(gpu, from_dlpack(output))))
        held.enter_context(patch.object(DataNode, "gpu", lambda node: node))
        for module in (pipeline, encoded_pipeline, evaluation_set):
            held.enter_context(patch.object(module, "pipeline_def", _on_cpu(dali.pipeline_def)))
        for module in (encoded_pipeline, evaluation_set):
            held.enter_context(patch.object(module, "decode", decode))
        yield
