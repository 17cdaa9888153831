"""What an operator does to memory, read from its schema: which arguments it writes, and whether the host waits for it."""

import functools
from typing import Any

import torch

from fastmpl.analysis.accounting import is_bookkeeping

aten = torch.ops.aten
# the host waits for their answer
HOST_READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
COPIES = {aten.copy_.default, aten._to_copy.default}
# may be given a tensor of the CPU beside those of the device; a CUDA kernel copies the index, and waits
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# the kernels that TensorFloat-32 rounds, if it is allowed
CONVOLUTIONS = {aten.convolution.default, aten.convolution_backward.default}
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}


# batch norms move the running statistics, arguments 3 and 4, and their schemas do not say so
UNDECLARED = {aten.native_batch_norm.default: (3, 4)}


@functools.cache
def list_written(operator: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Positions and names of the arguments that an operator writes."""
    if operator in UNDECLARED:
        return UNDECLARED[operator], ()
    arguments = operator._schema.arguments
    written = [(i, a) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    return tuple(i for i, _ in written), tuple(a.name for _, a in written)


@functools.cache
def launches(operator: Any) -> bool:
    """Whether an operator is a kernel on a device; views and allocations are not."""
    return not is_bookkeeping(operator)


def round_to_tf32(value: torch.Tensor) -> torch.Tensor:
    """float32 rounded to the 10 bits of mantissa that a tensor core keeps."""
    if value.dtype != torch.float32:
        return value
    bits = value.detach().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
