"""Batch statistics that are used and not recorded."""

import copy

import pytest
import torch
from torch import nn

from fastmpl.models import build, use_batch_statistics


def network(kind: str) -> nn.Module:
    if kind == "torch":
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    return build(kind, classes=10, image_shape=(3, 16, 16), dropout=0.0, norm="batch", width=16, depth=3, seed=0)


# timm:resnet18 has nn.BatchNorm2d, efficientnet BatchNormAct2d
KINDS = ["torch", "conv", "wrn_10_1", "timm:resnet18", "timm:efficientnet_b0"]


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_pass_gives_the_training_pass_and_records_nothing(kind):
    net = network(kind)
    images = torch.randn(4, 3, 16, 16)
    net(images)
    twin = copy.deepcopy(net)
    expected = twin(images)
    before = {k: v.clone() for k, v in net.named_buffers()}
    with use_batch_statistics(net):
        frozen = net(images)
    torch.testing.assert_close(frozen, expected, rtol=0, atol=1e-6)
    for name, value in net.named_buffers():
        assert torch.equal(value, before[name]), name
    assert any(not torch.equal(v, before[k]) for k, v in twin.named_buffers())


def test_recording_goes_on_after_the_block_even_if_it_raised():
    net = nn.BatchNorm2d(3)
    with pytest.raises(RuntimeError, match="inside"), use_batch_statistics(net):
        raise RuntimeError("inside")
    net(torch.randn(4, 3, 2, 2))
    assert net.num_batches_tracked == 1


def test_layers_in_evaluation_mode_keep_using_the_running_statistics():
    net = nn.BatchNorm2d(3).eval()
    images = torch.randn(4, 3, 2, 2) + 5
    with use_batch_statistics(net):
        torch.testing.assert_close(net(images), images, rtol=1e-4, atol=1e-4)
