"""The sum of two branches in one pass with the norm that reads it: numbers, memory, what it refuses and what it leaves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastmpl.analysis.accounting import LiveBytes
from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import Activation, batch_norm_act
from fastmpl_kernels.batch_norm_act.add import add_batch_norm_act
from fastmpl_kernels.batch_norm_act.reference import reference
from tests.kernels.test_batch_norm_act import LARGE, SLOPE, Case, make_case
from tests.kernels.three_way import BACKEND, assert_close_to_exact, needs_backend

SHAPES = [(3, 5, 7, 3), (19, 32, 1, 1), (2, 130, 3, 2)]
if not dispatch.is_interpreted():
    SHAPES += [(4, 16, 5, 5), (41, 12), (2, 7, 31), LARGE]
Op = Callable[..., tuple[Tensor, Tensor]]


def make_exact_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    """Sums, and those of the tangents, are exact in bfloat16: what is compared is the norm's rounding, not the sum's."""
    c = make_case(shape, torch.float32)
    x, residual, d = ((t * 8).round().clamp(-96, 96).div(8).to(dtype) for t in (c.x, c.residual, c.d))
    return c._replace(x=x, residual=residual, d=d)


def add_fused(activation: Activation) -> Op:
    def op(x: Tensor, addend: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return add_batch_norm_act(x * 1, addend, weight, bias, activation=activation, slope=SLOPE)  # a copy of the leaf

    return op


def add_plain(activation: Activation) -> Op:
    def op(x: Tensor, addend: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = x + addend
        return total, reference(total, weight, bias, eps=1e-5, activation=activation, slope=SLOPE)[0]

    return op


def run(op: Op, c: Case) -> dict[str, Tensor]:
    """Both outputs, the gradients with and without one that the sum has from elsewhere, and both tangents."""
    leaves = [t.detach().clone().requires_grad_() for t in (c.x, c.residual, c.weight, c.bias)]
    total, y = op(*leaves)
    both = torch.autograd.grad((total, y), leaves, (c.d.flip(0), c.d))
    norm_alone = torch.autograd.grad(op(*leaves)[1], leaves, c.d)
    with torch.no_grad():
        plain = op(*(t.detach() for t in leaves))
        primals = (c.x, c.residual, c.weight, c.bias)
        with torch.autograd.forward_ad.dual_level():
            tangents = (c.d, c.residual.flip(0), c.bias, c.weight)
            pairs = zip(primals, tangents, strict=True)
            duals = op(*(torch.autograd.forward_ad.make_dual(p, t) for p, t in pairs))
            moved = [torch.autograd.forward_ad.unpack_dual(value) for value in duals]
    names = ("dx", "daddend", "dweight", "dbias")
    return {
        "sum": total.detach(),
        "y": y.detach(),
        "sum without a graph": plain[0],
        "y without a graph": plain[1],
        **dict(zip(names, both, strict=True)),
        **{f"{name} of the norm alone": value for name, value in zip(names, norm_alone, strict=True)},
        "dual sum": moved[0].primal,
        "dual y": moved[1].primal,
        "tangent of the sum": moved[0].tangent,
        "tangent of y": moved[1].tangent,
    }


@needs_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("poison_memory")
def test_three_way(shape: tuple[int, ...], activation: Activation, dtype: torch.dtype) -> None:
    c = make_exact_case(shape, dtype)
    with dispatch.use(BACKEND):
        ours = run(add_fused(activation), c)
        assert dispatch.last_backend("batch_norm_act") == BACKEND
    theirs = run(add_plain(activation), c)
    exact = run(add_plain(activation), c.to(torch.float64))
    for name, value in ours.items():
        assert_close_to_exact(name, value, theirs[name], exact[name])


@needs_backend
def test_in_float32_it_has_every_bit_of_a_sum_and_a_norm() -> None:
    c = make_case(SHAPES[-1], torch.float32)

    def apart(x: Tensor, addend: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = x + addend
        return total, batch_norm_act(total, weight, bias, activation="leaky_relu", slope=SLOPE)

    with dispatch.use(BACKEND):
        together, one_by_one = run(add_fused("leaky_relu"), c), run(apart, c)
    for name, value in together.items():
        if dispatch.is_interpreted():  # its sums of a tile may associate otherwise
            torch.testing.assert_close(value, one_by_one[name], rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(value, one_by_one[name]), name


@needs_backend
def test_no_addition_is_a_pass_of_its_own_and_the_sum_takes_no_memory() -> None:
    c = make_case((4, 16, 5, 5), torch.float32)
    leaves = [t.clone().requires_grad_() for t in (c.x, c.residual, c.weight, c.bias)]
    with dispatch.use(BACKEND):
        x = leaves[0] * 1
        with LiveBytes() as seen:
            total, y = add_batch_norm_act(x, *leaves[1:])
            torch.autograd.grad((total, y), leaves, (c.d, c.d))
    assert total.data_ptr() == x.data_ptr()
    assert {"fastmpl.bn_add_train", "fastmpl.bn_add_backward"} <= set(seen.by_operator)
    assert not [name for name in seen.by_operator if name.startswith("aten.add")]


@needs_backend
def test_it_moves_the_running_statistics_by_those_of_the_sum() -> None:
    c = make_case((4, 16, 5, 5), torch.float32)
    found, expected = ([torch.zeros(16), torch.ones(16)] for _ in range(2))
    with dispatch.use(BACKEND):
        add_batch_norm_act(c.x.clone(), c.residual, c.weight, c.bias, running_mean=found[0], running_var=found[1])
        batch_norm_act(c.x + c.residual, c.weight, c.bias, running_mean=expected[0], running_var=expected[1])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("what", ["contiguous", "two types", "float64", "a view", "one tangent", "torch.func", "ranks"])
def test_what_the_kernels_do_not_serve_is_a_sum_and_a_norm(what: str) -> None:
    c = make_case((4, 16, 5, 5), torch.float64 if what == "float64" else torch.float32)
    x, addend, reduce = c.x.clone(), c.residual, None
    if what == "contiguous":
        x, addend = x.contiguous(), addend.contiguous()
    elif what == "two types":
        addend = addend.bfloat16()
    elif what == "a view":
        x = torch.cat([x, x])[:4]
    elif what == "ranks":
        reduce = lambda vector: vector  # noqa: E731
    expected = x + addend
    if what == "torch.func":
        moved = torch.func.jvp(lambda v: add_batch_norm_act(v * 1, addend, None, None), (x,), (c.d,))[1]
        plain = torch.func.jvp(lambda v: (v + addend, batch_norm_act(v + addend, None, None)), (x,), (c.d,))[1]
        torch.testing.assert_close(moved, plain)
    elif what == "one tangent":
        with torch.no_grad(), torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, c.d.clone())
            total, y = add_batch_norm_act(dual, addend, None, None)
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(total).tangent, c.d)
            assert torch.autograd.forward_ad.unpack_dual(y).tangent.abs().max() > 0
    else:
        total, y = add_batch_norm_act(x, addend, None, None, reduce=reduce)
        torch.testing.assert_close(total, expected, check_stride=False)
        torch.testing.assert_close(y, batch_norm_act(expected, None, None), check_stride=False)


def test_a_second_derivative_is_the_reference_s_or_raises() -> None:
    c = make_case((2, 3, 2, 2), torch.float64)
    leaves = [t.double().requires_grad_() for t in (c.x, c.residual, c.weight, c.bias)]
    assert torch.autograd.gradgradcheck(lambda *t: add_batch_norm_act(t[0] * 1, *t[1:], activation="silu")[1], leaves)
    single = [t.detach().float().requires_grad_() for t in leaves]
    with dispatch.use(BACKEND):
        y = add_batch_norm_act(single[0] * 1, *single[1:])[1]
        with pytest.raises(NotImplementedError, match="no second derivative"):
            torch.autograd.grad(y.square().sum(), single, create_graph=True)


@pytest.mark.skipif(not dispatch.is_interpreted(), reason="the Triton kernels: set TRITON_INTERPRET=1")
def test_a_kernel_that_fails_behind_the_sum_does_not_add_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmpl_kernels.batch_norm_act import implementations, triton_impl
    from fastmpl_kernels.batch_norm_act.settings import Norm, Running

    def fail(*arguments: object) -> None:
        raise RuntimeError("too little shared memory")

    c = make_case((3, 5, 7, 3), torch.float32)
    monkeypatch.setattr(triton_impl, "forward", fail)
    monkeypatch.setattr(implementations.TRITON, "_known", set())
    monkeypatch.setattr(implementations, "backend_of", lambda x: "triton")
    monkeypatch.setattr(dispatch, "_fallbacks", {})
    monkeypatch.setattr(dispatch, "is_forced", lambda: False)
    x = c.x.clone()
    y = implementations.TRITON.train(
        x,
        Norm(c.weight, c.bias, None, 0, 0.0),
        Running(None, None, 0.1, 1e-5),
        c.residual,
    )[0]
    torch.testing.assert_close(x, c.x + c.residual)
    torch.testing.assert_close(y, batch_norm_act(c.x + c.residual, c.weight, c.bias, activation="none"))
