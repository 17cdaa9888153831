"""The numbers of batch_norm_act's kernels in forward, backward and forward mode are as exact as torch's."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import Activation, batch_norm_act
from fastmpl_kernels.batch_norm_act.reference import activate, reference
from tests.kernels.three_way import BACKEND, assert_close_to_exact

SLOPE = 0.1
ACTIVATIONS: tuple[Activation, ...] = ("none", "relu", "leaky_relu", "silu")
# Whole tiles, odd channels, one image, one pixel an image, no pixels at all, more channels than a tile has columns.
SHAPES = [
    (4, 16, 5, 5),
    (3, 5, 7, 3),
    (1, 24, 6, 5),
    (19, 32, 1, 1),
    (41, 12),
    (2, 130, 3, 2),
    (2, 7, 31),
    (2, 1, 9, 9),
]
if dispatch.is_interpreted():  # a hundred times slower
    SHAPES = [(3, 5, 7, 3), (19, 32, 1, 1), (2, 130, 3, 2)]
LARGE = (5, 32, 60, 30)  # several blocks and parts; on native only, because the interpreter takes minutes


class Case(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor
    d: Tensor  # the output's gradient, and the tangent of x and of the residual

    def to(self, dtype: torch.dtype) -> "Case":
        return Case(*(t.to(dtype) for t in self))


def as_channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def make_case(shape: tuple[int, ...], dtype: torch.dtype, offset: float = 1.5, scale: float = 2.0) -> Case:
    generator = torch.Generator().manual_seed(sum(shape))
    c = shape[1]
    x, residual, d = (as_channels_last(torch.randn(shape, generator=generator)) for _ in range(3))
    weight, bias = torch.rand(c, generator=generator) + 0.5, torch.randn(c, generator=generator)
    return Case((x * scale + offset).to(dtype), weight, bias, residual.to(dtype), d.to(dtype))


def run(c: Case, activation: Activation, with_residual: bool, ours: bool) -> dict[str, Tensor]:
    """Output, gradients and tangent, by our op on the current backend, or by torch's functions in the case's type."""

    def op(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        r = residual if with_residual else None
        if ours:
            return batch_norm_act(x, weight, bias, activation=activation, slope=SLOPE, residual=r)
        if x.dtype == torch.float64:
            return reference(x, weight, bias, eps=1e-5, activation=activation, slope=SLOPE, residual=r)[0]
        z = F.batch_norm(x, None, None, weight, bias, True, 0.0, 1e-5)
        return activate(z if r is None else z + r, activation, SLOPE)

    leaves = [t.detach().clone().requires_grad_() for t in c[:4]]
    y = op(*leaves)
    grads = torch.autograd.grad(y, leaves[: 4 if with_residual else 3], c.d)
    tangents = (c.d, c.weight, c.bias, c.d)
    with torch.no_grad():
        value, tangent = torch.func.jvp(op, tuple(c[:4]), tangents)
    beside_graph = torch.func.jvp(op, tuple(leaves), tangents)[1].detach()  # by the autograd function's own rule
    names = ("dx", "dweight", "dbias", "dresidual")
    return {
        "y": y.detach(),
        **dict(zip(names, grads, strict=False)),
        "dual value": value,
        "tangent": tangent,
        "tangent beside a graph": beside_graph,
    }


def assert_three_way(c: Case, activation: Activation, with_residual: bool) -> None:
    with dispatch.use(BACKEND):
        ours = run(c, activation, with_residual, ours=True)
        assert dispatch.last_backend("batch_norm_act") == BACKEND
    theirs = run(c, activation, with_residual, ours=False)
    exact = run(c.to(torch.float64), activation, with_residual, ours=False)
    for name, value in ours.items():
        assert_close_to_exact(name, value, theirs[name], exact[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("poison_memory")
def test_three_way(shape: tuple[int, ...], activation: Activation, with_residual: bool, dtype: torch.dtype) -> None:
    assert_three_way(make_case(shape, dtype), activation, with_residual)


@pytest.mark.skipif(dispatch.is_interpreted(), reason="minutes in Triton's interpreter: unset TRITON_INTERPRET")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("poison_memory")
def test_three_way_over_many_blocks(dtype: torch.dtype) -> None:
    assert_three_way(make_case(LARGE, dtype), "silu", True)


@pytest.mark.parametrize(("offset", "scale"), [(1000.0, 1.0), (-3e4, 3.0), (0.0, 1e-4), (0.0, 1e10)])
def test_three_way_at_extreme_values(offset: float, scale: float) -> None:
    assert_three_way(make_case((4, 16, 5, 5), torch.float32, offset, scale), "silu", False)


def test_a_large_mean_costs_no_precision() -> None:
    c = make_case((4, 16, 5, 5), torch.float32, offset=3e4)  # torch's float32 is off by 3e-3 here
    with dispatch.use(BACKEND):
        ours = run(c, "leaky_relu", False, ours=True)
    exact = run(c.to(torch.float64), "leaky_relu", False, ours=False)
    for name, value in ours.items():
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-6, atol=1e-6 * exact[name].abs().max().item())


def test_a_constant_channel_gives_its_bias() -> None:
    x = as_channels_last(torch.full((2, 3, 4, 4), 1e4))
    bias = torch.tensor([1.0, -2.0, 0.5])
    with dispatch.use(BACKEND):
        y = batch_norm_act(x, torch.ones(3), bias, activation="none")
    torch.testing.assert_close(y, bias.view(1, 3, 1, 1).expand_as(y), rtol=0, atol=1e-6)


def test_a_nan_is_not_hidden_by_the_activation() -> None:
    x = as_channels_last(torch.randn(2, 4, 3, 3))
    x[0, 1, 0, 0] = float("nan")
    for activation in ACTIVATIONS:
        with dispatch.use(BACKEND):
            y = batch_norm_act(x, torch.ones(4), torch.zeros(4), activation=activation)
        assert y[:, 1].isnan().all()
        assert y[:, [0, 2, 3]].isfinite().all()


def test_running_statistics_move_as_in_torch() -> None:
    c = make_case((4, 16, 5, 5), torch.float32)
    ours, theirs = ([torch.zeros(16), torch.ones(16)] for _ in range(2))
    with dispatch.use(BACKEND):
        batch_norm_act(c.x, c.weight, c.bias, running_mean=ours[0], running_var=ours[1], momentum=0.3)
    F.batch_norm(c.x, *theirs, c.weight, c.bias, True, 0.3)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_running_statistics_stay_when_told_so() -> None:
    c = make_case((4, 16, 5, 5), torch.float32)
    mean, var = torch.zeros(16), torch.ones(16)
    with dispatch.use(BACKEND):
        batch_norm_act(c.x, c.weight, c.bias, running_mean=mean, running_var=var, update_running=False)
    assert mean.eq(0).all()
    assert var.eq(1).all()


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "misaligned", "transposed"])
def test_any_layout_gives_the_same(layout: str) -> None:
    c = make_case((4, 16, 6, 6), torch.float32)
    if layout == "contiguous":
        x = c.x.contiguous()
    elif layout == "sliced":
        x = torch.cat([c.x, c.x], dim=3)[:, :, :, :6]
    elif layout == "misaligned":
        flat = torch.empty(c.x.numel() + 1)[1:]
        x = flat.view(4, 6, 6, 16).movedim(-1, 1).copy_(c.x)
    else:
        x = c.x.transpose(2, 3).contiguous().transpose(2, 3)
    with dispatch.use(BACKEND):
        expected, found = (batch_norm_act(t, c.weight, c.bias) for t in (c.x, x))
        assert dispatch.last_backend("batch_norm_act") == BACKEND
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_gradient_of_any_layout_gives_the_same() -> None:
    c = make_case((4, 16, 6, 6), torch.float32)
    x = c.x.clone().requires_grad_()
    with dispatch.use(BACKEND):
        y = batch_norm_act(x, c.weight, c.bias)
        expected, found = (torch.autograd.grad(y, x, d, retain_graph=True)[0] for d in (c.d, c.d.contiguous()))
        (of_sum,) = torch.autograd.grad(y.sum(), x, retain_graph=True)  # an expanded gradient
        (of_ones,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(found, expected)
    assert torch.equal(of_sum, of_ones)


def test_contiguous_input_keeps_its_layout_and_takes_torch_s_own() -> None:
    x = torch.randn(2, 3, 4, 5)
    y = batch_norm_act(x, torch.ones(3), torch.zeros(3), activation="relu")
    assert y.is_contiguous()
    assert dispatch.last_backend("batch_norm_act") == "reference"
    torch.testing.assert_close(y, F.relu(F.batch_norm(x, None, None, None, None, True)))


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    c = make_case(LARGE if not dispatch.is_interpreted() else (2, 16, 3, 3), torch.float32)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with dispatch.use(BACKEND):
            results.append(run(c, "leaky_relu", False, ours=True))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("place", ["x", "weight", "bias"])
def test_every_nan_stays_one(place: str) -> None:
    """The kernels round bfloat16 in words of two, where a NaN with all bits set could carry into a number."""
    x = torch.randn(4, 64, 3, 3).bfloat16().contiguous(memory_format=torch.channels_last)
    given = {"x": x, "weight": torch.ones(64), "bias": torch.zeros(64)}
    for nan in (0x7FFFFFFF, -1):
        changed = given[place].clone()
        values = torch.tensor(nan, dtype=torch.int32).view(torch.float32)
        if place == "x":
            changed[:, 5] = torch.tensor(nan >> 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
        else:
            changed[5] = values
        with dispatch.use(BACKEND):
            y = batch_norm_act(**(given | {place: changed}))
        assert y[:, 5].isnan().all()
        assert y[:, :5].isfinite().all()


@pytest.mark.parametrize("backend", ["reference", BACKEND, "torch"])
@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan")])
def test_a_batch_that_overflows_a_channel_leaves_its_running_statistics(backend: str, value: float) -> None:
    """An exponential average never forgets an infinity; every checkpoint after one such batch would hold it."""
    x = as_channels_last(torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(0)))
    x = x.contiguous() if backend == "torch" else x  # its own batch norm serves this layout
    mean, var = torch.full((5,), 0.25), torch.full((5,), 2.0)
    expected = [mean.clone(), var.clone()]
    F.batch_norm(x, *expected, training=True)
    x[1, 2, 0, 0] = value
    for running, before in zip(expected, (0.25, 2.0), strict=True):
        running[2] = before
    with dispatch.use("auto" if backend == "torch" else backend):  # type: ignore[arg-type]
        batch_norm_act(x, None, None, running_mean=mean, running_var=var)
    torch.testing.assert_close([mean, var], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", BACKEND])
@pytest.mark.parametrize("ratio", [1e3, 1e5, 1e6])
def test_the_variance_survives_a_mean_of_many_deviations(backend: dispatch.Choice, ratio: float) -> None:
    """E[x^2] - mean^2 in float64 would be off by 1e-16 ratio^2, relative to the variance."""
    generator = torch.Generator().manual_seed(0)
    x = as_channels_last((torch.randn(4, 3, 9, 9, generator=generator) + ratio).to(torch.float32))
    exact = x.double().movedim(1, -1).reshape(-1, 3)
    mean, var = torch.zeros(3), torch.zeros(3)
    with dispatch.use(backend):
        batch_norm_act(x, None, None, running_mean=mean, running_var=var, momentum=1.0)
    torch.testing.assert_close(var.double(), exact.var(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(mean.double(), exact.mean(0), rtol=1e-7, atol=0)


def test_the_reference_s_variance_survives_any_mean_in_float64() -> None:
    x = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e10
    mean, var = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    batch_norm_act(x, None, None, running_mean=mean, running_var=var, momentum=1.0)
    torch.testing.assert_close(var, (x - x[0]).var(0), rtol=1e-9, atol=0)


def test_the_leaky_slope_is_exact_in_float64() -> None:
    c = make_case((3, 5, 7, 3), torch.float64)
    x = c.x.clone().requires_grad_()
    y = batch_norm_act(x, c.weight, c.bias, activation="leaky_relu", slope=0.1)
    z, _, _ = reference(x, c.weight, c.bias, eps=1e-5, activation="leaky_relu", slope=0.1)
    for d in (c.d, torch.ones_like(c.d)):
        found, expected = (torch.autograd.grad(out, x, d, retain_graph=True)[0] for out in (y, z))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not dispatch.is_interpreted(), reason="the Triton kernels' parts: set TRITON_INTERPRET=1")
@pytest.mark.parametrize(("rows", "channels"), [(800, 8), (805, 5), (323, 130)])
def test_many_parts_make_the_sums_of_one(rows: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole tiles and a rest, whole groups of parts and a rest, a last part of fewer rows, columns outside."""
    from fastmpl_kernels.batch_norm_act import implementations, triton_constants, triton_tiles

    monkeypatch.setattr(implementations, "SMALLEST_PART", 16 * channels)
    monkeypatch.setitem(triton_constants.FINALISER, "PARTS", 8)
    monkeypatch.setattr(triton_tiles, "TILE_BYTES", 1024)
    assert implementations.parts(rows, channels) > 10
    c = make_case((rows, channels), torch.float32, offset=100.0)
    assert_three_way(c, "silu", True)
    mean, var = torch.zeros(channels), torch.zeros(channels)
    with dispatch.use("triton"):
        batch_norm_act(c.x, c.weight, c.bias, running_mean=mean, running_var=var, momentum=1.0)
    torch.testing.assert_close(mean.double(), c.x.double().mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), c.x.double().var(0), rtol=1e-6, atol=0)
