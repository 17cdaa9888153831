"""A tensor of the imitated GPU: a subclass that says it is on `cuda:0`, and holds a CPU tensor that has its numbers.

To the C++ code of torch it is a tensor without memory whose operators are dispatched to Python (as those of
FakeTensorMode are), so that autograd, forward mode and functional calls work as they do on a GPU.
"""

from typing import Any

import torch
from torch import Tensor

from tests.imitated_gpu.memory import Block

DEVICE = torch.device("cuda", 0)


class DeviceTensor(Tensor):
    """`inner` is the CPU tensor, `block` its memory."""

    inner: Tensor
    block: Block

    @staticmethod
    def __new__(cls, inner: Tensor, block: Block) -> "DeviceTensor":
        shape = torch.empty_strided(inner.size(), inner.stride(), dtype=inner.dtype, device="meta")
        made: DeviceTensor = Tensor._make_subclass(
            cls, shape, False, dispatch_device=False, device_for_backend_keys=DEVICE
        )
        made.inner, made.block = inner, block
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from tests.imitated_gpu.device import running

        return running().dispatch(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def get_device(self) -> int:
        return 0

    def record_stream(self, stream: Any) -> None:
        self.block.recorded.add(stream.number)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return self.cpu().numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = self.detach().clone(memory_format=torch.preserve_format)
        if getattr(self, "_is_param", False):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a tensor of the imitated GPU cannot be pickled: copy it to the CPU first")

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"{self.cpu()!r} on cuda:0"


def unwrap(value: Any) -> Any:
    """The same arguments with the CPU tensors."""
    if isinstance(value, DeviceTensor):
        return value.inner
    if isinstance(value, list | tuple):
        return type(value)([unwrap(item) for item in value])
    return value


def find_tensors(value: Any, found: list[Tensor]) -> list[Tensor]:
    """All tensors of nested lists and tuples, added to `found`."""
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, list | tuple):
        for item in value:
            find_tensors(item, found)
    return found
