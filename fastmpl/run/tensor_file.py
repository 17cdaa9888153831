"""The bytes of a safetensors file, one tensor at a time: equal tensors and metadata make equal bytes.

The library's own writer holds the whole file in memory, twice, and orders the metadata differently in every process. A
file is the length of its header (8 bytes, little-endian), the header as JSON, padded with spaces to 8 bytes, then the
tensors' bytes in the order of the header (https://huggingface.co/docs/safetensors).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

CHUNK: Final = 16 << 20  # bytes that are hashed and written at once
TYPES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def encode_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[memoryview]:
    """The file in pieces. Of the tensors that lie on a device or are strided, one at a time is copied.

    Raises KeyError for a type that these files do not have.
    """
    # the widest types first: every tensor then begins at a multiple of its own item size
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    if metadata is not None:
        header["__metadata__"] = dict(sorted(metadata.items()))
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": TYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    words = json.dumps(header, separators=(",", ":")).encode()
    words += b" " * (-len(words) % 8)
    yield memoryview(len(words).to_bytes(8, "little") + words)
    for name in order:
        yield from _pieces(tensors[name])


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    # the format stores dense tensors only, and channels-last weights are strided
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().data
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]
