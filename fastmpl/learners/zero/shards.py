"""Which elements of which parameter a rank holds, and how wholes are made of pieces.

A piece is a run of elements of one parameter, counted row by row. DeepSpeed lays them out in two ways: stages 1 and 2
put all parameters in a row and cut it into equal parts, one a rank; stage 3 cuts every parameter into equal parts. The
optimiser, the average and a checkpoint know pieces by their parameter's name, and are the same for both. Stage 0 has
wholes for pieces.

N ranks; the pieces that `tensors` holds are the engine's own memory: to write them moves the network.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastmpl.distributed.ranks import Ranks
from fastmpl.learners.protocol import Gradient

Parameters = Mapping[str, nn.Parameter]


class Piece(NamedTuple):
    """The elements [start, start + length) of a parameter, which lie at `at` in this rank's memory."""

    start: int
    length: int
    at: int


class Shards(Protocol):
    """A rank's part of a network."""

    tensors: dict[str, Tensor]  # by parameter, those of which this rank holds something
    shapes: dict[str, torch.Size]  # of all parameters

    def gradients(self) -> Gradient:
        """What the engine has reduced for the step that it is in."""
        ...

    def mean(self, gradients: Gradient) -> Gradient:
        """The pieces of the mean over ranks of whole gradients."""
        ...

    def whole(self, pieces: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Parameters made of the pieces of all ranks; zero where `pieces` lack one."""
        ...

    def spread(self) -> None:
        """The network follows the tensors, which were written outside a step."""
        ...

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """This rank's piece of a parameter."""
        ...


class Replicated:
    """Stage 0: every rank holds everything."""

    def __init__(self, parameters: Parameters, ranks: Ranks) -> None:
        self.parameters, self.ranks = parameters, ranks
        self.tensors = {name: p.detach() for name, p in parameters.items()}
        self.shapes = {name: p.shape for name, p in parameters.items()}

    def gradients(self) -> Gradient:
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.parameters.items()}

    def mean(self, gradients: Gradient) -> Gradient:
        self.ranks.all_reduce_mean_(list(gradients.values()))
        return gradients

    def whole(self, pieces: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        return dict(pieces)

    def spread(self) -> None:
        pass

    def cut(self, name: str, whole: Tensor) -> Tensor:
        return whole.view_as(self.tensors[name])


class FlatShards:
    """Stages 1 and 2: all parameters in a row, of which each rank has an equal part."""

    def __init__(self, parameters: Parameters, ranks: Ranks, engine: Any) -> None:
        zero = engine.optimizer
        (self.row,), (self.part,) = zero.bit16_groups_flat, zero.single_partition_of_fp32_groups
        self.ranks = ranks
        self.shapes = {name: p.shape for name, p in parameters.items()}
        self.size = self.part.numel()
        if not zero.cpu_offload:
            # DeepSpeed has a copy for the optimiser; weights and their optimiser are float32 here, so one will do
            self.part.data = zero.parallel_partitioned_bit16_groups[0][ranks.rank].data
        self.places: dict[str, int] = {}  # of each parameter in the row
        self.pieces: dict[str, Piece] = {}
        at = 0
        for name, p in parameters.items():
            assert p.data_ptr() == self.row.data_ptr() + at * self.row.element_size(), "DeepSpeed's order is another"
            self.places[name] = at
            start, end = (min(max(ranks.rank * self.size + edge - at, 0), p.numel()) for edge in (0, self.size))
            if end > start:
                self.pieces[name] = Piece(start, end - start, at + start - ranks.rank * self.size)
            at += p.numel()
        self.tensors = self._cut(self.part.detach())

    def gradients(self) -> Gradient:
        return self._cut(self.part.grad)

    def mean(self, gradients: Gradient) -> Gradient:
        row = self.row.new_zeros(self.row.numel())
        for name, gradient in gradients.items():
            self._of(row, name).copy_(gradient)
        part = self._cut(self.ranks.reduce_scatter_mean(row).to(self.part.device))
        return {name: piece for name, piece in part.items() if name in gradients}

    def whole(self, pieces: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        part = self.row.new_zeros(self.size, device=device)
        for name, piece in self._cut(part).items():
            if name in pieces:
                piece.copy_(pieces[name])
        row = self.ranks.all_gather(part)
        return {name: self._of(row, name) for name in self.shapes}

    def spread(self) -> None:
        self.row.copy_(self.ranks.all_gather(self.part.detach().to(self.row.device)))

    def cut(self, name: str, whole: Tensor) -> Tensor:
        return _cut_piece(whole, self.pieces[name])

    def _of(self, row: Tensor, name: str) -> Tensor:
        shape = self.shapes[name]
        return row[self.places[name] : self.places[name] + shape.numel()].view(shape)

    def _cut(self, part: Tensor) -> dict[str, Tensor]:
        return {name: part[piece.at : piece.at + piece.length] for name, piece in self.pieces.items()}


class ParameterShards:
    """Stage 3: each rank has an equal slice of every parameter, the last ones filled up."""

    def __init__(self, parameters: Parameters, ranks: Ranks, engine: Any) -> None:
        self.zero = engine.optimizer
        (self.part,) = self.zero.fp32_partitioned_groups_flat
        (self.held,) = self.zero.fp16_partitioned_groups_flat  # what passes gather
        if not self.zero.offload_optimizer:
            self.part.data = self.held.data  # as in `FlatShards`
        self.ranks = ranks
        given: Any = parameters  # with the attributes that DeepSpeed gives them
        self.shapes = {name: torch.Size(p.ds_shape) for name, p in given.items()}
        self.lengths = {name: p.ds_tensor.numel() for name, p in given.items()}
        self.pieces: dict[str, Piece] = {}
        at = 0
        for name, length in self.lengths.items():
            start = ranks.rank * length
            room = min(length, self.shapes[name].numel() - start)
            if room > 0:
                self.pieces[name] = Piece(start, room, at)
            at += length
        assert at == self.part.numel(), "DeepSpeed's order is another"
        self.tensors = self._cut(self.part.detach())

    def gradients(self) -> Gradient:
        return self._cut(self.part.grad)

    def reduce(self) -> Gradient:
        """The gradients of the backward passes since the last step, copied."""
        return self._cut(self.zero.grad_partitions_flat_buffer.to(self.part.device, copy=True))

    def mean(self, gradients: Gradient) -> Gradient:
        raise NotImplementedError("no rank holds whole gradients at stage 3")

    def whole(self, pieces: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        return {name: self.gather({name: [pieces]}, device)[name][0] for name in self.shapes}

    def gather(
        self, wanted: Mapping[str, Sequence[Mapping[str, Tensor]]], device: torch.device
    ) -> dict[str, list[Tensor]]:
        """Some parameters, each made of the pieces of several sets, by one message."""
        slices = []
        for name, sets in wanted.items():
            for pieces in sets:
                mine = self.part.new_zeros(self.lengths[name], device=device)
                if name in pieces:
                    mine[: self.pieces[name].length].copy_(pieces[name])
                slices.append(mine)
        rows = self.ranks.all_gather(torch.cat(slices).unsqueeze(0))  # [N, slices]
        columns = iter(torch.split(rows, [len(mine) for mine in slices], dim=1))
        return {
            name: [next(columns).reshape(-1)[: self.shapes[name].numel()].view(self.shapes[name]) for _ in sets]
            for name, sets in wanted.items()
        }

    def spread(self) -> None:
        self.held.copy_(self.part.detach())  # the same memory, unless the optimiser is in the host's
        self.zero._partition_all_parameters()  # it keeps wholes that a pass will soon need again; they are old now

    def cut(self, name: str, whole: Tensor) -> Tensor:
        return _cut_piece(whole, self.pieces[name])

    def _cut(self, part: Tensor) -> dict[str, Tensor]:
        return {name: part[piece.at : piece.at + piece.length] for name, piece in self.pieces.items()}


def _cut_piece(whole: Tensor, piece: Piece) -> Tensor:
    return whole.reshape(-1)[piece.start : piece.start + piece.length]


def shards_of(engine: Any, parameters: Parameters, ranks: Ranks) -> Replicated | FlatShards | ParameterShards:
    """The layout of an engine's stage."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return Replicated(parameters, ranks)
    return (ParameterShards if stage == 3 else FlatShards)(parameters, ranks, engine)
