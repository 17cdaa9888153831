"""A network's shape without its tensors."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from fastmpl.models import build, set_draw, twin, use_batch_statistics


def network(model: str = "wrn_10_1") -> nn.Module:
    return build(model, classes=5, image_shape=(3, 32, 32), dropout=0.5, norm="batch", width=8, depth=2, seed=0)


@pytest.mark.parametrize("model", ["wrn_10_1", "perceptron", "timm:test_resnet"])
def test_a_twin_given_the_tensors_of_its_network_gives_its_logits(model):
    net = network(model)
    shape = twin(net)
    assert all(t.is_meta for t in (*shape.parameters(), *shape.buffers()))
    set_draw(net, torch.tensor(3))
    images = torch.randn(4, 3, 32, 32)
    given = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    with use_batch_statistics(net), use_batch_statistics(shape):
        torch.testing.assert_close(functional_call(shape, given, (images,)), net(images), rtol=0, atol=0)


def test_tied_parameters_stay_tied():
    net = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    net[1].weight = net[0].weight
    copied = twin(net)
    assert copied[0].weight is copied[1].weight


@pytest.mark.parametrize("model", ["wrn_10_1", "timm:test_resnet"])
def test_a_twin_can_be_taken_of_fake_tensors(model):
    with FakeTensorMode():
        net = network(model)
        given = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        assert functional_call(twin(net), given, (torch.empty(2, 3, 32, 32),)).shape == (2, 5)
