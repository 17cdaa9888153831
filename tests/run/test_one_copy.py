"""How often a decoded picture is copied between DALI's memory and what a step reads: never, or once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130 to test streams of encoded images")

from fastmpl.config import Config, load
from fastmpl.data.batch import IMAGES, Batch
from fastmpl.data.draws import StreamName
from fastmpl.data.files.encoded import Files, Names
from fastmpl.data.loader import Loader
from fastmpl.data.normalise import IMAGENET
from fastmpl.data.sampler import Sampler
from fastmpl.data.streaming.crops import Crops
from fastmpl.data.streaming.encoded_pipeline import EncodedStream, Machine
from fastmpl.data.streaming.reading import Reader
from fastmpl.distributed.ranks import ALONE
from fastmpl.run.build import Trainee
from fastmpl.run.graph_choice import choose_execution, loaded_dtype
from tests import mini_imagenet
from tests.step.emulated_cuda import Cuda

CONFIGS = Path(__file__).parents[2] / "launch" / "configs"
SIZE, BATCH, COUNT = 32, 4, 8
COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default, torch.ops.aten.clone.default}


class Copies(TorchDispatchMode):
    """Counts the copies of whole batches of pictures, which this thread makes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += func in COPIES and out.numel() == BATCH * 3 * SIZE * SIZE
        return out


@pytest.fixture
def images(tmp_path: Path) -> Files:
    names = [f"{number}.jpg" for number in range(COUNT)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(mini_imagenet.jpeg(number % 10, 0, number, (60, 45)))
    return Files(tmp_path, Names(names))


def loader(images: Files, dtype: torch.dtype) -> Loader:
    """Batches that are made in this thread."""
    members, how = np.arange(COUNT), Crops(SIZE, (0.08, 1.0), (3 / 4, 4 / 3), True, 1, 10, 8)

    def opened(stream: StreamName, step: int) -> EncodedStream:
        reader, sampler = Reader(images, members, 0), Sampler(members, BATCH, stream, 0)
        two_views = stream is StreamName.UNLABELLED
        return EncodedStream(reader, sampler, how, IMAGENET, Machine(), two_views=two_views, step=step, dtype=dtype)

    return Loader(opened, torch.zeros(COUNT, dtype=torch.int64), trusted=False, fingerprint={})


def pictures(batch: Batch) -> list[torch.Tensor]:
    return [part for part in (getattr(batch, name) for name in IMAGES) if part is not None]


def asked(precision: str) -> Config:
    return load(CONFIGS / "digits.toml", {"system.precision": precision})


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device on which DALI left the batch: streams and graphs are imitated, memory is the host's."""
    Cuda(monkeypatch)
    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)
    return torch.device("cuda")


@pytest.mark.parametrize(("precision", "dtype", "copies"), [("float32", torch.float32, 0), ("bf16", torch.bfloat16, 1)])
def test_an_eager_step_reads_dali_s_memory_or_the_one_conversion_of_it(
    images: Files, precision: str, dtype: torch.dtype, copies: int
) -> None:
    batches = loader(images, loaded_dtype(asked(precision), torch.device("cpu")))
    with Copies() as counted:
        given = pictures(next(batches))
    assert [part.dtype for part in given] == [dtype] * 3
    assert counted.count == copies * len(given)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_copy_into_a_graph_s_inputs_is_the_only_one_and_converts(
    images: Files, cuda: torch.device, precision: str, dtype: torch.dtype
) -> None:
    config, read = asked(precision), list[Batch]()
    step_of = SimpleNamespace(execute=read.append, is_between=False, taken=0)
    trainee = cast(Trainee, SimpleNamespace(step=step_of, student=SimpleNamespace(ranks=ALONE)))
    step = choose_execution(trainee, config, cuda, pytest.fail, decodes=True)
    batches, same = loader(images, loaded_dtype(config, cuda)), loader(images, torch.float32)
    step(next(batches))  # makes the inputs
    next(same)
    with Copies() as counted:
        step(next(batches))
    assert counted.count == 3
    for found, expected in zip(pictures(read[-1]), pictures(next(same)), strict=True):
        assert torch.equal(found, expected.to(dtype))
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=torch.channels_last)
