"""What data-parallel ranks tell each other: means of tensors, rows of all, and facts of the host.

Each rank holds the whole network, takes its part of every global batch, and applies the mean gradient; so all hold the
same parameters at all times. The mean is one flat all-reduce after the backward pass, and not DistributedDataParallel:
feedback's second gradient g' comes from `autograd.grad` on a functional call, which the hooks of DDP do not see, so one
mean serves both; there are no hooks beside forward mode, nor buffers sent before each pass; and a captured step is the
same code. What is given up is overlap with the backward pass: about 1 ms of 100 MB of gradients over NVLink, against a
step of two ResNet-50 of some 300 ms (both estimated, not measured here). Leaves out how the processes find each other
(`fastmpl.distributed.process_group`) and sharded networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

Fact = TypeVar("Fact")
LARGEST: Final = 1 << 24  # elements of a message: bounds the copy, and lets one message travel while the next is made


@dataclass(frozen=True)
class Ranks:
    """The processes that train together. Every method is called by all of them, in the same order."""

    rank: int = 0
    size: int = 1

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over ranks, bit-equal on all of them."""
        self.sum_(tensors)
        if self.size > 1 and tensors:
            torch._foreach_div_(list(tensors), self.size)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over ranks, in few messages."""
        if self.size == 1:
            return
        sent = []
        for part in _messages(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in part])
            sent.append((part, flat, dist.all_reduce(flat, async_op=True)))
        for part, flat, work in sent:
            assert work is not None
            work.wait()
            for tensor, total in zip(part, torch.split(flat, [tensor.numel() for tensor in part]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def rows(self, mine: Float[Tensor, "n *rest"]) -> Float[Tensor, "ranks*n *rest"]:
        """The rows of all ranks, one rank after another: the rows of one process. All ranks have as many."""
        if self.size == 1:
            return mine
        every = mine.new_empty(self.size, *mine.shape)
        dist.all_gather(list(every.unbind()), mine.contiguous())
        return every.flatten(0, 1)

    def mean_part(self, whole: Float[Tensor, "ranks*n"]) -> Float[Tensor, "n"]:
        """This rank's part of the mean over ranks: half of what `mean_` sends."""
        if self.size == 1:
            return whole
        part = torch.empty_like(whole.chunk(self.size)[0])
        dist.reduce_scatter(part, list(whole.chunk(self.size)))
        return part.div_(self.size)

    def of(self, every: Float[Tensor, "ranks*n *rest"]) -> Float[Tensor, "n *rest"]:
        """This rank's part of the rows of all."""
        return every.chunk(self.size)[self.rank]

    def facts(self, mine: Fact) -> list[Fact]:
        """A small fact of the host from each rank, in their order. It waits for the device: not for inside a step."""
        if self.size == 1:
            return [mine]
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, mine)
        return every


def _messages(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in their order, cut where the type changes or a message would exceed `LARGEST`."""
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
