"""The files of tensors: what the library reads, from equal contents equal bytes, one tensor in memory at a time."""

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from fastmpl.run.student_file import FileFacts, save_network
from fastmpl.run.tensor_file import TYPES, encode_tensors


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_library_reads_every_type_and_shape(dtype: torch.dtype) -> None:
    shapes = ((), (0,), (3,), (2, 3, 4, 5))
    tensors = {f"{dtype} {shape}": (torch.randn(shape) * 9).to(dtype) for shape in shapes}
    tensors["strided"] = (torch.randn(2, 3, 4, 5) * 9).to(dtype).to(memory_format=torch.channels_last)
    tensors["a byte, which comes last"] = torch.ones(1, dtype=torch.uint8)
    tensors["a double, which comes first"] = torch.ones(1, dtype=torch.float64)
    read = safetensors.torch.load(b"".join(encode_tensors(tensors)))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_large_tensor_is_written_in_pieces_of_its_own_memory() -> None:
    tensor = torch.arange(9 << 20)  # int64: 72 MB
    header, *pieces = encode_tensors({"a": tensor})
    assert [len(piece) >> 20 for piece in pieces] == [16, 16, 16, 16, 8]
    tensor[0] = 7
    assert bytes(pieces[0][:8]) == (7).to_bytes(8, "little")
    assert len(header) % 8 == 0


def test_a_student_s_file_is_equal_from_save_to_save(tmp_path: Path) -> None:
    """The library's own writer orders the metadata anew each time."""
    weights = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    facts = FileFacts(("a", "b"), (3, 8, 8), None, "selected", "student of step 3")
    saved = {save_network(tmp_path, dict(reversed(weights.items())), facts).read_bytes() for _ in range(2)}
    saved.add(save_network(tmp_path, weights, facts).read_bytes())
    assert len(saved) == 1
    with safetensors.safe_open(tmp_path / "student.safetensors", "pt") as file:
        assert json.loads(file.metadata()["class_names"]) == ["a", "b"]
        assert torch.equal(file.get_tensor("weight"), weights["weight"])
