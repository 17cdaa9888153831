"""The sums and means over ranks, of tensors in every order of memory."""

import torch
from torch import Tensor

from fastmpl.distributed.ranks import Ranks
from tests.ranks.spawned import on_ranks


def make_tensors(rank: int) -> list[Tensor]:
    """Of one rank: contiguous, channels-last, both, transposed, every second element, a number, and another dtype."""
    draws = torch.Generator().manual_seed(rank)
    shapes = ((3, 4), (5, 3, 3, 2), (4, 3, 1, 1), (3, 5), (8,), ())
    plain, image, narrow, turned, sparse, number = (torch.randn(shape, generator=draws) for shape in shapes)
    image, narrow = (each.contiguous(memory_format=torch.channels_last) for each in (image, narrow))
    return [plain, image, narrow, turned.t(), sparse[::2], number, torch.randn(3, generator=draws).double()]


def take_mean_and_sum(ranks: Ranks) -> tuple[list[Tensor], list[Tensor], bool]:
    means, sums = make_tensors(ranks.rank), make_tensors(ranks.rank)
    ranks.all_reduce_mean_(means)
    ranks.all_reduce_sum_(sums)
    kept = [each.stride() for each in means] == [each.stride() for each in make_tensors(0)]
    return [each.clone() for each in means], [each.clone() for each in sums], kept


def test_means_and_sums_are_those_of_the_tensors_whatever_their_order_in_memory() -> None:
    both = [torch.stack(pair) for pair in zip(make_tensors(0), make_tensors(1), strict=True)]
    for means, sums, kept in on_ranks(2, take_mean_and_sum):
        assert kept
        assert all(torch.equal(each, pair.sum(0) / 2) for each, pair in zip(means, both, strict=True))
        assert all(torch.equal(each, pair.sum(0)) for each, pair in zip(sums, both, strict=True))
