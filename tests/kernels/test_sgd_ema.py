"""sgd_ema takes the step of torch.optim.SGD and the average after it; global_norm is the norm of all gradients."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastmpl_kernels import dispatch
from fastmpl_kernels.sgd_ema import global_norm, inner_product, sgd_ema
from tests.kernels.three_way import BACKEND

SHAPES = [(3,), (5000,), (16, 4, 3, 3), (1024,), (), (0,), (70001,)]  # less than, exactly and more than a block


class Lists(NamedTuple):
    params: list[Tensor]
    grads: list[Tensor]
    buffers: list[Tensor]
    averages: list[Tensor]

    def clone(self, dtype: torch.dtype = torch.float32) -> "Lists":
        return Lists(*([t.to(dtype, copy=True) for t in tensors] for tensors in self))


@pytest.fixture
def lists() -> Lists:
    generator = torch.Generator().manual_seed(0)
    return Lists(*([torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(4)))


def take_step(
    lists: Lists, *, nesterov: bool = True, clip: float = 1.0, found_inf: Tensor | None = None, average: bool = True
) -> None:
    dtype = lists.params[0].dtype
    sgd_ema(
        lists.params,
        lists.grads,
        lists.buffers,
        lists.averages if average else None,
        lr=torch.tensor(0.1, dtype=dtype),
        momentum=0.9,
        weight_decay=0.01,
        nesterov=nesterov,
        clip_factor=torch.tensor(clip, dtype=dtype),
        found_inf=found_inf,
        decay=0.99,
    )


def take_torchs_step(lists: Lists, nesterov: bool, clip: float) -> None:
    """The same step and average by torch, in place."""
    params = [torch.nn.Parameter(p) for p in lists.params]
    optimiser = torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    for p, g, b in zip(params, lists.grads, lists.buffers, strict=True):
        p.grad = g * clip
        optimiser.state[p]["momentum_buffer"] = b
    optimiser.step()
    for average, p in zip(lists.averages, params, strict=True):
        average.lerp_(p.detach(), 0.01)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("clip", [1.0, 0.3])
def test_three_way(lists: Lists, nesterov: bool, clip: float) -> None:
    ours, theirs, exact = lists.clone(), lists.clone(), lists.clone(torch.float64)
    with dispatch.use(BACKEND):
        take_step(ours, nesterov=nesterov, clip=clip)
        assert dispatch.last_backend("sgd_ema") == BACKEND
    take_torchs_step(theirs, nesterov, clip)
    take_torchs_step(exact, nesterov, clip)
    for name in ("params", "buffers", "averages"):
        for a, b, c in zip(getattr(ours, name), getattr(theirs, name), getattr(exact, name), strict=True):
            if c.numel():
                allowed = (b - c).abs().max().item() + c.abs().max().item() * 2.0**-22
                assert (a - c).abs().max().item() <= allowed, name


def test_reference_equals_torch_in_float64(lists: Lists) -> None:
    ours, theirs = lists.clone(torch.float64), lists.clone(torch.float64)
    take_step(ours, clip=0.3)
    assert dispatch.last_backend("sgd_ema") == "reference"
    take_torchs_step(theirs, True, 0.3)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_nothing_changes_when_something_was_not_finite(lists: Lists) -> None:
    ours = lists.clone()
    ours.grads[1][7] = math.inf
    with dispatch.use(BACKEND):
        take_step(ours, found_inf=torch.tensor(1.0))
    for name in ("params", "buffers", "averages"):
        assert all(map(torch.equal, getattr(ours, name), getattr(lists, name)))


def test_a_found_inf_of_zero_changes_nothing_about_the_step(lists: Lists) -> None:
    plain, checked = lists.clone(), lists.clone()
    with dispatch.use(BACKEND):
        take_step(plain)
        take_step(checked, found_inf=torch.tensor(0.0))
    assert all(map(torch.equal, plain.params, checked.params))


def test_average_is_left_out_where_there_is_none(lists: Lists) -> None:
    ours, whole = lists.clone(), lists.clone()
    with dispatch.use(BACKEND):
        take_step(ours, average=False)
        take_step(whole)
    assert all(map(torch.equal, ours.params, whole.params))
    assert all(map(torch.equal, ours.averages, lists.averages))


def test_channels_last_weights_take_the_kernel(lists: Lists) -> None:
    expected = lists.clone()
    found = Lists(
        *([t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in ts] for ts in lists.clone())
    )
    with dispatch.use(BACKEND):
        take_step(expected)
        take_step(found)
    torch.testing.assert_close(found.params, expected.params, rtol=0, atol=0)


def test_mixed_layouts_take_the_reference_and_give_the_same(lists: Lists) -> None:
    expected, found = lists.clone(), lists.clone()
    found.grads[2] = found.grads[2].contiguous(memory_format=torch.channels_last)
    take_step(expected)
    take_step(found)
    assert dispatch.last_backend("sgd_ema") == "reference"
    torch.testing.assert_close(found.params, expected.params)


def test_mixed_layouts_raise_when_a_kernel_was_asked_for_by_name(lists: Lists) -> None:
    lists.grads[2] = lists.grads[2].contiguous(memory_format=torch.channels_last)
    with dispatch.use(BACKEND), pytest.raises(dispatch.BackendError, match="one layout"):
        take_step(lists)


def test_a_view_at_any_address_is_fine(lists: Lists) -> None:
    expected, found = lists.clone(), lists.clone()
    flat = torch.empty(5001)[1:]
    found.grads[1] = flat.copy_(found.grads[1])
    with dispatch.use(BACKEND):
        take_step(expected)
        take_step(found)
    torch.testing.assert_close(found.params, expected.params, rtol=1e-6, atol=1e-6)


def test_autograd_learns_that_parameters_changed() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    loss = (p * p).sum()
    sgd_ema([p], [torch.ones(3)], [torch.zeros(3)], None, lr=torch.tensor(0.1), momentum=0.9)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_lists_of_different_lengths_are_refused(lists: Lists) -> None:
    with pytest.raises(ValueError, match="7 parameters but 6 gradients"):
        sgd_ema(lists.params, lists.grads[1:], lists.buffers, None, lr=torch.tensor(0.1), momentum=0.9)


def test_global_norm_is_that_of_all_gradients_together(lists: Lists) -> None:
    with dispatch.use(BACKEND):
        norm = global_norm(lists.grads)
        assert dispatch.last_backend("global_norm") == BACKEND
    exact = math.sqrt(sum(g.double().square().sum().item() for g in lists.grads))
    assert norm.shape == ()
    assert norm.item() == pytest.approx(exact, rel=2**-23)


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_global_norm_holds_where_the_squares_leave_float32(size: float) -> None:
    with dispatch.use(BACKEND):
        assert global_norm([torch.full((5000,), size)]).item() == pytest.approx(size * math.sqrt(5000), rel=1e-6)


def test_global_norm_does_not_overflow_where_the_squares_would() -> None:
    with dispatch.use(BACKEND):
        assert global_norm([torch.full((4,), 1e30)]).item() == pytest.approx(2e30)
        assert global_norm([torch.tensor([1.0, math.inf])]).item() == math.inf
        assert math.isnan(global_norm([torch.tensor([1.0, math.nan])]).item())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inner_product_is_that_of_all_tensors_together(lists: Lists, layout: torch.memory_format) -> None:
    a = [g.contiguous(memory_format=layout) if g.dim() == 4 else g for g in lists.grads]
    found = inner_product(a, lists.params)  # of one layout, or of two
    assert dispatch.last_backend("inner_product") == ("native" if layout is torch.contiguous_format else "reference")
    exact = sum((x.double() * y.double()).sum().item() for x, y in zip(a, lists.params, strict=True))
    size = sum((x.double() * y.double()).abs().sum().item() for x, y in zip(a, lists.params, strict=True))
    assert found.shape == ()
    assert abs(found.item() - exact) <= 1e-6 * size


def test_inner_product_holds_where_products_leave_float32() -> None:
    ones = torch.ones(5000)
    assert inner_product([ones * 1e25], [ones * 1e-25]).item() == pytest.approx(5000)
    assert (
        inner_product([ones * 1e25, ones], [torch.cat([ones[:2500] * 1e20, ones[2500:] * -1e20]), ones]).item() == 5000
    )


def test_inner_product_refuses_lists_that_do_not_match(lists: Lists) -> None:
    with pytest.raises(ValueError, match="7 and 6"):
        inner_product(lists.grads, lists.grads[1:])


def test_bare_ops_pass_opcheck(lists: Lists) -> None:
    small = Lists(*([t for t in tensors if 0 < t.numel() < 1000] for tensors in lists))
    rate = torch.tensor(0.1)
    utilities = ("test_schema", "test_faketensor")
    arguments = (*small.clone(), rate, rate, torch.tensor(0.0), rate, 0.9, 0.01, True)
    torch.library.opcheck(torch.ops.fastmpl.sgd_ema_.default, arguments, test_utils=utilities)
    torch.library.opcheck(torch.ops.fastmpl.global_norm.default, (small.grads,), test_utils=utilities)
    torch.library.opcheck(torch.ops.fastmpl.inner_product.default, (small.grads, small.params), test_utils=utilities)
