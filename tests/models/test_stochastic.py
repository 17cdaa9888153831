"""Draws that can be repeated."""

import copy

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch.func import functional_call

from fastmpl.models import KeyedDropout, KeyedDropPath, replace_dropout, set_draw


def key(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64)


@pytest.mark.parametrize("layer", [KeyedDropout(0.3), KeyedDropout(0.3, channels=True), KeyedDropPath(0.3)])
def test_one_draw_is_one_mask_and_another_draw_another(layer):
    x = torch.ones(64, 4, 3, 3)
    set_draw(layer, key(1))
    first, again = layer(x), layer(x)
    set_draw(layer, key(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, layer(x))


def test_units_are_dropped_at_the_rate_asked_for_and_the_mean_is_kept():
    out = KeyedDropout(0.3)(torch.ones(512, 512))
    assert abs((out == 0).float().mean().item() - 0.3) < 0.005
    assert abs(out.mean().item() - 1.0) < 0.01


def test_channels_and_paths_are_dropped_whole():
    x = torch.ones(32, 8, 3, 3)
    channels = (KeyedDropout(0.5, channels=True)(x) != 0).flatten(2).float().mean(2)
    paths = (KeyedDropPath(0.5)(x) != 0).flatten(1).float().mean(1)
    for kept in (channels, paths):
        assert set(kept.unique().tolist()) == {0.0, 1.0}


def test_layers_of_one_network_draw_apart():
    net = nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.Dropout(0.5))
    replace_dropout(net)
    x = torch.ones(16, 16)
    assert not torch.equal(net[0](x), net[2](x))


def test_mask_of_an_example_does_not_depend_on_the_size_of_the_batch():
    layer = KeyedDropout(0.5)
    assert torch.equal(layer(torch.ones(8, 16))[:3], layer(torch.ones(3, 16)))


def test_evaluation_mode_and_rate_zero_change_nothing():
    x = torch.randn(4, 5)
    assert KeyedDropout(0.5).eval()(x) is x
    assert KeyedDropout(0.0)(x) is x


def test_backward_and_tangent_see_the_mask_of_the_value():
    layer = KeyedDropout(0.5)
    x = torch.ones(8, 16, requires_grad=True)
    value = layer(x)
    value.sum().backward()
    with forward_ad.dual_level():
        dual = layer(forward_ad.make_dual(torch.ones(8, 16), torch.ones(8, 16)))
        tangent = forward_ad.unpack_dual(dual).tangent
    assert torch.equal(x.grad, value)
    assert torch.equal(tangent, value)


def two_layers() -> nn.Module:
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 16), nn.Dropout(0.5))
    replace_dropout(net)
    return net


def test_draw_reaches_every_layer_of_a_moved_copy_and_of_no_other():
    net = two_layers()
    copied = copy.deepcopy(net).to(torch.float64)
    set_draw(copied, key(7))
    assert [copied[0].draw, copied[2].draw, net[0].draw, net[2].draw] == [7, 7, 0, 0]


def test_a_twin_without_storage_sees_the_draw_it_is_given_and_keeps_none():
    net = two_layers()
    twin = copy.deepcopy(net).to("meta")
    set_draw(net, key(7))
    x = torch.randn(8, 16)
    given = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert torch.equal(functional_call(twin, given, (x,)), net(x))
    assert all(b.is_meta for b in twin.buffers())


def test_draw_is_no_part_of_the_state_dict():
    assert KeyedDropout(0.5).state_dict() == {}


def test_draws_leave_the_generator_alone():
    before = torch.get_rng_state()
    KeyedDropout(0.5)(torch.ones(8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_replacing_keeps_rate_kind_and_mode():
    from timm.layers import DropPath

    net = nn.Sequential(nn.Dropout(0.1), nn.Dropout2d(0.2), DropPath(0.3)).eval()
    replace_dropout(net)
    assert [(type(m).__name__, m.p, m.training) for m in net] == [
        ("KeyedDropout", 0.1, False),
        ("KeyedDropout", 0.2, False),
        ("KeyedDropPath", 0.3, False),
    ]
    assert net[1].channels
    assert not net[0].channels
