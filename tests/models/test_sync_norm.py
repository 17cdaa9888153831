"""Synchronised batch norm against torch's batch norm on the images of all ranks."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastmpl.models import build, frozen_statistics, synchronise
from fastmpl.models.sync_norm import SyncBatchNorm


@dataclass(frozen=True)
class Twins:
    """Two ranks that hold the same images: what this one says, the other says too."""

    size: int = 2

    def all_reduce_mean_(self, tensors: list[Tensor]) -> None: ...

    def all_gather(self, mine: Tensor) -> Tensor:
        return torch.cat([mine, mine])


def pair() -> tuple[SyncBatchNorm, nn.BatchNorm2d, Tensor]:
    """The norm on one of two twins, torch's, and the twins' images."""
    torch.manual_seed(0)
    mine, theirs = SyncBatchNorm(3).double(), nn.BatchNorm2d(3).double()
    with torch.no_grad():
        mine.weight.uniform_(0.5, 2.0)
        mine.bias.normal_()
    theirs.load_state_dict(mine.state_dict())
    synchronise(mine, Twins())
    return mine, theirs, 3 * torch.randn(4, 3, 5, 5, dtype=torch.float64) + 7


def test_values_gradients_and_running_statistics_are_those_of_all_images() -> None:
    mine, theirs, images = pair()
    a, b = images.clone().requires_grad_(), images.repeat(2, 1, 1, 1).requires_grad_()
    found, expected = mine(a), theirs(b)
    torch.testing.assert_close(found, expected[:4])
    found.square().mul(images).sum().backward()
    expected.square().mul(images.repeat(2, 1, 1, 1)).sum().backward()
    assert a.grad is not None and b.grad is not None
    torch.testing.assert_close(a.grad, b.grad[:4])
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, msg=name)


def test_forward_mode_is_that_of_all_images() -> None:
    mine, theirs, images = pair()
    tangent = torch.randn_like(images)
    with forward_ad.dual_level():
        found = mine(forward_ad.make_dual(images, tangent))
        expected = theirs(forward_ad.make_dual(images.repeat(2, 1, 1, 1), tangent.repeat(2, 1, 1, 1)))
        found, expected = forward_ad.unpack_dual(found).tangent, forward_ad.unpack_dual(expected).tangent
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, expected[:4])


def test_frozen_statistics_are_used_and_not_recorded() -> None:
    mine, _, images = pair()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    with frozen_statistics(mine):
        frozen = mine(images)
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
    assert torch.equal(frozen, mine(images))
    assert mine.num_batches_tracked == 1


def test_evaluation_uses_the_running_statistics() -> None:
    mine, theirs, images = pair()
    assert torch.equal(mine.eval()(images), theirs.eval()(images))


def test_bf16_images_are_normalised_in_float32() -> None:
    mine, _, images = pair()
    mine.float()
    found = mine(images.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, mine(images.bfloat16().float()).bfloat16())


@pytest.mark.parametrize("model", ["conv", "wrn_10_1", "timm:resnet18", "timm:efficientnet_b0"])
def test_a_network_in_one_process_is_the_one_with_batch_norm(model: str) -> None:
    def network(norm: str) -> nn.Module:
        return build(model, classes=5, image_shape=(3, 32, 32), dropout=0.0, norm=norm, width=8, depth=3, seed=0)  # type: ignore[arg-type]

    mine, theirs = network("sync"), network("batch")
    assert any(isinstance(module, SyncBatchNorm) for module in mine.modules())
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(mine(images), theirs(images), atol=1e-3, rtol=1e-3)  # sums in another order
