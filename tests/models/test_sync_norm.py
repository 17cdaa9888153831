"""Synchronised batch norm against torch's batch norm on the images of all ranks."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastmpl.distributed.ranks import Ranks
from fastmpl.models import build, synchronise, use_batch_statistics
from fastmpl.models.sync_norm import SumOverRanks, SyncBatchNorm
from fastmpl_kernels.batch_norm_act.module import BatchNormAct2d

Pair = tuple[nn.BatchNorm2d, nn.BatchNorm2d, Tensor]


@dataclass(frozen=True)
class Twins:
    """Two ranks that hold the same images: what this one says, the other says too."""

    size: int = 2

    def all_reduce_mean_(self, tensors: list[Tensor]) -> None: ...

    def all_reduce_sum_(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            tensor.mul_(2)

    def all_gather(self, mine: Tensor) -> Tensor:
        return torch.cat([mine, mine])


@pytest.fixture(params=["fused", "unfused"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """The norm on one of two twins, torch's, and the twins' images."""
    torch.manual_seed(0)
    fused = request.param == "fused"
    mine: nn.BatchNorm2d = (
        BatchNormAct2d(3, activation="none", reduce=SumOverRanks()) if fused else SyncBatchNorm(3)
    ).double()
    theirs = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        mine.weight.uniform_(0.5, 2.0)
        mine.bias.normal_()
    theirs.load_state_dict(mine.state_dict())
    synchronise(mine, Twins())
    return mine, theirs, 3 * torch.randn(4, 3, 5, 5, dtype=torch.float64) + 7


def test_values_gradients_and_running_statistics_are_those_of_all_images(pair: Pair) -> None:
    mine, theirs, images = pair
    a, b = images.clone().requires_grad_(), images.repeat(2, 1, 1, 1).requires_grad_()
    found, expected = mine(a), theirs(b)
    torch.testing.assert_close(found, expected[:4])
    found.square().mul(images).sum().backward()
    expected.square().mul(images.repeat(2, 1, 1, 1)).sum().backward()
    assert a.grad is not None and b.grad is not None
    torch.testing.assert_close(a.grad, b.grad[:4])
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, msg=name)


def test_forward_mode_is_that_of_all_images(pair: Pair) -> None:
    mine, theirs, images = pair
    tangent = torch.randn_like(images)
    with forward_ad.dual_level():
        found = mine(forward_ad.make_dual(images, tangent))
        expected = theirs(forward_ad.make_dual(images.repeat(2, 1, 1, 1), tangent.repeat(2, 1, 1, 1)))
        found, expected = forward_ad.unpack_dual(found).tangent, forward_ad.unpack_dual(expected).tangent
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, expected[:4])


def test_frozen_statistics_are_used_and_not_recorded(pair: Pair) -> None:
    mine, _, images = pair
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    with use_batch_statistics(mine):
        frozen = mine(images)
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
    assert torch.equal(frozen, mine(images))
    assert mine.num_batches_tracked == 1


def test_evaluation_uses_the_running_statistics(pair: Pair) -> None:
    mine, theirs, images = pair
    assert torch.equal(mine.eval()(images), theirs.eval()(images))


def test_bf16_images_are_normalised_in_float32(pair: Pair) -> None:
    mine, _, images = pair
    mine.float()
    found = mine(images.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, mine(images.bfloat16().float()).bfloat16())


@pytest.mark.parametrize("model", ["conv", "wrn_10_1", "timm:resnet18", "timm:efficientnet_b0"])
def test_a_network_in_one_process_is_the_one_with_batch_norm(model: str) -> None:
    def network(norm: str) -> nn.Module:
        return build(model, classes=5, image_shape=(3, 32, 32), dropout=0.0, norm=norm, width=8, depth=3, seed=0)  # type: ignore[arg-type]

    mine, theirs = network("sync"), network("batch")
    norms = [module for module in mine.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(isinstance(norm, BatchNormAct2d) and isinstance(norm.reduce, SumOverRanks) for norm in norms)
    synchronise(mine, Ranks())
    assert norms
    assert all(isinstance(norm, BatchNormAct2d) and norm.reduce is None for norm in norms)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(mine(images), theirs(images), atol=1e-3, rtol=1e-3)  # sums in another order
