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


def find_wrong(ranks: Ranks) -> list[str]:
    """What is not as torch has it, on this rank; a tensor would not outlive the process that sends it."""
    means, sums = make_tensors(ranks.rank), make_tensors(ranks.rank)
    ranks.all_reduce_mean_(means)
    ranks.all_reduce_sum_(sums)
    wrong = []
    for number, pair in enumerate(zip(make_tensors(0), make_tensors(1), strict=True)):
        total = pair[0] + pair[1]
        wrong += [f"sum of {number}"] * (not torch.equal(sums[number], total))
        wrong += [f"mean of {number}"] * (not torch.equal(means[number], total / 2))
        wrong += [f"layout of {number}"] * (means[number].stride() != pair[0].stride())
    return wrong


def test_means_and_sums_are_those_of_the_tensors_whatever_their_order_in_memory() -> None:
    assert on_ranks(2, find_wrong) == [[], []]
