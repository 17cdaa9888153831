"""The collectives of data-parallel ranks: means of tensors, gathered rows, and small objects of the host.

Each rank holds the whole network, takes its part of every global batch, and applies the mean gradient. So all ranks hold
the same parameters at all times. The mean is one flat all-reduce after the backward pass. DistributedDataParallel is not
used for four reasons: the second gradient g' of feedback comes from `autograd.grad` on a functional call, which the hooks
of DDP do not see; DDP has no forward mode; it broadcasts buffers before each pass; and a captured step needs the same
code. The price is that communication does not overlap with the backward pass: about 1 ms for 100 MB of gradients over
NVLink, in a step of two ResNet-50 of some 300 ms (both are estimates, not measurements). Leaves out how the processes
find each other (`fastmpl.distributed.process_group`) and sharded networks (`fastmpl.learners.zero`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

Item = TypeVar("Item")
LARGEST: Final = 1 << 24  # elements of a message: bounds the copy, and one message travels while the next is made


@dataclass(frozen=True)
class Ranks:
    """The processes that train together. Every rank calls every method, in the same order."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None  # None: the one that steps use

    def all_reduce_mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over ranks, bit-equal on all of them."""
        self._all_reduce(tensors, self.size)

    def all_reduce_sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over ranks, in few messages."""
        self._all_reduce(tensors, 1)

    def _all_reduce(self, tensors: Sequence[Tensor], divisor: int) -> None:
        if self.size == 1:
            return
        sent = []
        for part in _split_messages([_in_memory_order(tensor) for tensor in tensors]):
            flat = torch.cat([tensor.reshape(-1) for tensor in part])
            sent.append((part, flat, dist.all_reduce(flat, group=self.group, async_op=True)))
        for part, flat, work in sent:
            assert work is not None
            work.wait()
            if divisor > 1:
                flat.div_(divisor)
            totals = torch.split(flat, [tensor.numel() for tensor in part])
            torch._foreach_copy_(part, [total.view(each.shape) for each, total in zip(part, totals, strict=True)])

    def all_gather(self, mine: Float[Tensor, "n *rest"]) -> Float[Tensor, "ranks*n *rest"]:
        """The rows of all ranks, in the order of ranks. Every rank gives the same number of rows."""
        if self.size == 1:
            return mine
        gathered = mine.new_empty(self.size, *mine.shape)
        dist.all_gather(list(gathered.unbind()), mine.contiguous(), group=self.group)
        return gathered.flatten(0, 1)

    def reduce_scatter_mean(self, whole: Float[Tensor, "ranks*n"]) -> Float[Tensor, "n"]:
        """This rank's part of the mean over ranks. It sends half of what `all_reduce_mean_` sends."""
        if self.size == 1:
            return whole
        part = torch.empty_like(whole.chunk(self.size)[0])
        dist.reduce_scatter(part, list(whole.chunk(self.size)), group=self.group)
        return part.div_(self.size)

    def take_own_rows(self, gathered: Float[Tensor, "ranks*n *rest"]) -> Float[Tensor, "n *rest"]:
        """This rank's rows of those that `all_gather` gave; no communication."""
        return gathered.chunk(self.size)[self.rank]

    def all_gather_object(self, mine: Item) -> list[Item]:
        """A small Python object of each rank, in the order of ranks. It waits for the device: do not call it in a step."""
        if self.size == 1:
            return [mine]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, mine, group=self.group)
        return gathered


def _in_memory_order(tensor: Tensor) -> Tensor:
    """A view whose elements are read in the order of memory, if the tensor is channels-last: else a copy transposes them.

    Every rank runs the same program, so that a tensor has the same order on all of them.
    """
    is_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.permute(0, 2, 3, 1) if is_last and not tensor.is_contiguous() else tensor


def _split_messages(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in their order, in a new message where the dtype changes or a message would exceed `LARGEST`."""
    parts: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not parts or tensor.numel() > room or tensor.dtype != parts[-1][0].dtype:
            parts.append([])
            room = LARGEST
        parts[-1].append(tensor)
        room -= tensor.numel()
    return parts


ALONE = Ranks()
