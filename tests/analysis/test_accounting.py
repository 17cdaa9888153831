"""Costs that are counted: exact, repeatable, the same for fake tensors."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from fastmpl.analysis.accounting import LiveBytes, count_arithmetic, measure, tensors_of
from fastmpl.models import build

KB = 1024
BLOCK = (16, 16)  # 1 KB of float32


def test_peak_is_what_was_alive_at_one_moment():
    def chain() -> torch.Tensor:
        x = torch.zeros(BLOCK)
        for _ in range(10):
            x = x + 1  # the old and the new: two blocks at once
        return x

    account = measure(chain)
    assert account.peak_bytes == 2 * KB
    assert account.kept_bytes == 1 * KB


def test_views_add_neither_bytes_nor_operations():
    x = torch.zeros(BLOCK)
    account = measure(lambda: x.view(-1).detach()[3:].unsqueeze(0), x)
    assert account == (KB, KB, 0, 0, {})


def test_operations_are_counted_by_name():
    x = torch.ones(BLOCK)
    account = measure(lambda: x.exp().exp().t().sum(), x)
    assert account.operations == 3
    assert account.by_operator == {"aten.exp": 2, "aten.sum": 1}


def test_what_the_graph_saves_is_alive_until_backward():
    x = torch.ones(BLOCK, requires_grad=True)
    with_graph = measure(lambda: x.exp().exp().exp(), x)
    with torch.no_grad():
        without = measure(lambda: x.exp().exp().exp(), x)
    assert with_graph.peak_bytes == 4 * KB
    assert without.peak_bytes == 3 * KB
    assert with_graph.kept_bytes == 3 * KB
    assert without.kept_bytes == 1 * KB


def step(net: nn.Module, images: torch.Tensor) -> None:
    net(images).logsumexp(1).sum().backward()


def test_fake_tensors_count_as_real_ones_do():
    def account():
        net = build("conv", classes=5, image_shape=(3, 16, 16), dropout=0.1, norm="batch", width=16, depth=1, seed=0)
        images = torch.zeros(8, 3, 16, 16)
        step(net, images)
        return measure(lambda: step(net, images), net, images)

    real = account()
    with FakeTensorMode():
        fake = account()
    assert real == fake
    assert real.peak_bytes > real.base_bytes > 0


def test_recompute_lowers_the_peak_and_raises_the_count():
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Tanh()) for _ in range(6)))
    x = torch.zeros(256, 64, requires_grad=True)

    def plain() -> None:
        layers(x).sum().backward()

    def recomputed() -> None:
        y = x
        for layer in layers:
            y = checkpoint(layer, y, use_reentrant=False)
        y.sum().backward()

    plain()
    kept, again = measure(plain, layers, x), measure(recomputed, layers, x)
    assert again.peak_bytes < kept.peak_bytes
    assert again.operations > kept.operations


def test_module_and_optimiser_are_watched_with_gradients_and_state():
    net = nn.Linear(16, 16, bias=False)
    optimiser = torch.optim.SGD(net.parameters(), lr=torch.tensor(0.1), momentum=0.9, fused=True)
    net(torch.zeros(2, 16)).sum().backward()
    optimiser.step()
    mode = LiveBytes()
    mode.watch(net, optimiser)
    assert mode.live == 3 * KB + 4  # parameter, gradient, momentum; the rate
    assert any(t is optimiser.param_groups[0]["lr"] for t in tensors_of(optimiser))


def test_storages_are_rounded_up_as_an_allocator_would():
    assert measure(lambda: torch.zeros(3), round_to=512).peak_bytes == 512


def test_arithmetic_of_a_training_step_is_three_forwards():
    net = nn.Linear(32, 8, bias=False)
    x = torch.zeros(4, 32, requires_grad=True)
    forward = count_arithmetic(lambda: net(x))
    assert forward == 2 * 4 * 32 * 8
    assert count_arithmetic(lambda: net(x).sum().backward()) == 3 * forward


@pytest.mark.parametrize("groups", [1, 4, 16], ids=["dense", "grouped", "depthwise"])
def test_a_convolution_costs_its_positions_times_its_weights_and_twice_that_backward(groups: int):
    net = nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False)
    x = torch.zeros(2, 16, 8, 8, requires_grad=True)
    forward = count_arithmetic(lambda: net(x))
    assert forward == 2 * (2 * 8 * 8) * (16 * 16 // groups * 9)
    assert count_arithmetic(lambda: net(x).sum().backward()) == 3 * forward
    assert count_arithmetic(lambda: net(x.detach()).sum().backward()) == 2 * forward  # nobody asks for the images'


def test_tangents_are_counted_as_arithmetic_and_as_operations():
    net, x = nn.Linear(32, 8, bias=False), torch.zeros(4, 32)

    def derivative() -> torch.Tensor:
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(net.weight.detach(), torch.ones(8, 32))
            return forward_ad.unpack_dual(torch.func.functional_call(net, {"weight": dual}, (x,))).tangent

    assert count_arithmetic(derivative) == 3 * count_arithmetic(
        lambda: net(x)
    )  # the value, and a product for each factor
    assert measure(derivative).by_operator["aten.mm"] == 3


def test_live_bytes_count_the_arithmetic_of_the_flop_counter() -> None:
    """And fused attention of a CPU, 2 products of 2 * 8 * 8 * 4 forward, and 2.5 times as much backward."""
    x = torch.randn(1, 1, 8, 4, requires_grad=True)
    weight = torch.randn(3, 4, requires_grad=True)

    def call() -> None:
        (torch.nn.functional.scaled_dot_product_attention(x, x, x) @ weight.t()).sum().backward()

    mode = LiveBytes()
    with mode:
        call()
    assert mode.flops == count_arithmetic(call)
    assert mode.flops == 3.5 * (2 * 2 * 8 * 8 * 4) + 3 * (2 * 8 * 4 * 3)


def test_a_product_in_place_counts_as_one_out_of_place() -> None:
    a, b, c = torch.zeros(3, 4), torch.zeros(4, 5), torch.zeros(3, 5)
    assert count_arithmetic(lambda: c.addmm_(a, b)) == count_arithmetic(lambda: torch.addmm(c, a, b)) == 2 * 3 * 4 * 5


def test_fused_attention_counts_as_its_products() -> None:
    """Forward 2 products, backward 5, each 2 * images * heads * queries * keys * width; and it keeps no scores."""
    q, k, v = (torch.zeros(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    product = 2 * 2 * 3 * 5 * 7 * 8
    assert count_arithmetic(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * product
    assert count_arithmetic(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward()) == 7 * product
    long = torch.zeros(1, 1, 256, 8)
    found = measure(lambda: F.scaled_dot_product_attention(long, long, long))
    assert found.peak_bytes == 4 * (256 * 8 + 256)
