"""The tables of addresses from which one launch walks any number of tensors, and who keeps them alive.

A program of the kernels works on one block of one tensor. It reads from a `Table` which tensor and block these are, and
where the tensors of each list lie in memory. A table is made on the host once for each set of addresses, and kept.

The contract with a CUDA graph capture, whose replays read the same table again:

- The caller keeps its tensors at their addresses: parameters and momentum buffers as a matter of course, and gradients in
  buffers that persist from step to step (copied into or accumulated in place, never set to None). One step before the
  capture then makes the tables, and the capture only reads them.
- A captured graph keeps every table that it reads. Capture within `hold_tables()` and keep its list as long as the graph;
  a table that a capture uses without a holder is kept for the life of the process. The cache below never drops either.
- Addresses that a capture meets for the first time work as well, and cost some launches in every replay: the table is then
  made on the device, in the graph's own memory, from numbers that the launches carry. No host memory is read by a replay,
  and nothing of that table is kept, because outside of the graph's replays nobody has written it.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmpl_kernels.dispatch import is_capturing

BLOCK = 1024  # two 128-bit loads a thread and list; the masked tail would need 168 registers at 2048
TABLES_KEPT = 16  # two networks, step and norm, and the odd change of addresses

Lists = Sequence[Sequence[Tensor]]

log = logging.getLogger(__name__)


class Table(NamedTuple):
    """What the kernels read of lists of tensors, of which the n-th of every list has the same size."""

    addresses: Tensor  # [lists, tensors] int64
    sizes: Tensor  # [tensors] int64
    tensor: Tensor  # [programs] int32: the tensor of each program
    block: Tensor  # [programs] int32: the block of that tensor
    aligned: bool  # every address is a multiple of 16 bytes

    def tensors(self) -> list[Tensor]:
        """The memory that has to stay as long as somebody reads the table."""
        return [self.addresses, self.sizes, self.tensor, self.block]


_tables: OrderedDict[tuple[Any, ...], Table] = OrderedDict()
_captured: list[Table] = []
_holders: list[list[Table]] = []


@contextmanager
def hold_tables() -> Iterator[list[Table]]:
    """Collects every table that is used within the block. A captured graph keeps the list as long as it may be replayed."""
    held: list[Table] = []
    _holders.append(held)
    try:
        yield held
    finally:
        _holders.remove(held)


def table_of(lists: Lists) -> Table:
    """The table of these lists: the kept one where their addresses are known, else a new one."""
    first = lists[0]
    key = (first[0].device, *[t.data_ptr() for tensors in lists for t in tensors], *[t.numel() for t in first])
    capturing = is_capturing(first[0])
    table = _tables.get(key)
    if table is None and capturing:
        log.warning(
            "a CUDA graph capture met tensors at new addresses, so every replay writes a table of them anew: run one step "
            "before the capture, and keep the gradients' memory"
        )
        return _make_on_device(lists)
    if table is None:
        table = _tables[key] = _make_on_host(lists)
        _drop_oldest()
    _tables.move_to_end(key)
    for held in _holders:
        held.append(table)
    if capturing and not _holders:
        _captured.append(table)
    return table


def _drop_oldest() -> None:
    """Keeps the cache small. Kernels that still read a dropped table finish before its memory is used again."""
    while len(_tables) > TABLES_KEPT:
        _, dropped = _tables.popitem(last=False)
        for tensor in dropped.tensors():
            if tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))


def _blocks(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK


def _addresses(lists: Lists) -> list[list[int]]:
    return [[t.data_ptr() for t in tensors] for tensors in lists]


def _is_aligned(addresses: list[list[int]]) -> bool:
    return all(address % 16 == 0 for row in addresses for address in row)


def _make_on_host(lists: Lists) -> Table:
    """The table of `lists`, copied to their device without waiting for it."""
    first, device = lists[0], lists[0][0].device

    def copy(values: Any, dtype: torch.dtype) -> Tensor:
        host = torch.tensor(values, dtype=dtype)
        return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)

    addresses = _addresses(lists)
    pairs = [(i, b) for i, t in enumerate(first) for b in range(_blocks(t.numel()))]
    return Table(
        copy(addresses, torch.int64),
        copy([t.numel() for t in first], torch.int64),
        copy([i for i, _ in pairs], torch.int32),
        copy([b for _, b in pairs], torch.int32),
        _is_aligned(addresses),
    )


def _write(numbers: list[int], device: torch.device) -> Tensor:
    """A tensor of int64 numbers that travel to the device as arguments of launches, many to a launch."""
    out = torch.zeros(len(numbers), dtype=torch.int64, device=device)
    torch._foreach_add_(list(out.unbind()), numbers)
    return out


def _make_on_device(lists: Lists) -> Table:
    """The same table by operators that a capture allows: no copy from the host, no memory of the host."""
    first, device = lists[0], lists[0][0].device
    addresses = _addresses(lists)
    sizes = _write([t.numel() for t in first], device)
    counts = (sizes + (BLOCK - 1)) // BLOCK
    ends = counts.cumsum(0)
    programs = torch.arange(sum(_blocks(t.numel()) for t in first), device=device)
    tensor = torch.searchsorted(ends, programs, right=True)
    block = programs - (ends - counts)[tensor]
    flat = _write([address for row in addresses for address in row], device)
    return Table(
        flat.view(len(lists), len(first)),
        sizes,
        tensor.to(torch.int32),
        block.to(torch.int32),
        _is_aligned(addresses),
    )
