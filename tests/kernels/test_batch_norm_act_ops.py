"""The library ops of batch_norm_act: what they refuse, which modes see a call, which backend runs it."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad

from fastmpl.analysis.accounting import LiveBytes
from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import batch_norm_act, library_ops, native, sum_ops
from fastmpl_kernels.batch_norm_act.settings import NUMBER
from tests.kernels.batch_norm_inputs import inputs

LEAKY = NUMBER["leaky_relu"]


def bare_calls() -> dict[str, tuple[Any, ...]]:
    x, weight, bias, residual = inputs()
    sums = library_ops.bn_sums(x)
    _, moments = library_ops.bn_forward(x, sums, weight, bias, residual, None, None, 0.1, 1e-5, LEAKY, 0.1)
    gradient_sums = library_ops.bn_gradient_sums(x, x, moments, weight, bias, residual, LEAKY, 0.1)
    running = (torch.zeros(4), torch.ones(4))
    return {
        "bn_train": (x, weight, bias, residual, *running, 0.1, 1e-5, LEAKY, 0.1),
        "bn_backward": (x, x, moments, weight, bias, residual, LEAKY, 0.1),
        "bn_sums": (x,),
        "bn_forward": (x, sums, weight, bias, residual, *running, 0.1, 1e-5, LEAKY, 0.1),
        "bn_gradient_sums": (x, x, moments, weight, bias, None, LEAKY, 0.1),
        "bn_gradient": (x, x, moments, gradient_sums, gradient_sums, weight, bias, residual, LEAKY, 0.1),
        "bn_dual_sums": (x, x),
        "bn_dual": (
            x,
            x,
            library_ops.bn_dual_sums(x, x),
            weight,
            bias,
            weight,
            bias,
            residual,
            x,
            *running,
            0.1,
            1e-5,
            LEAKY,
            0.1,
        ),
        "bn_dual_train": (x, x, weight, bias, weight, bias, residual, x, *running, 0.1, 1e-5, LEAKY, 0.1),
        "bn_tangent": (x, x, moments, gradient_sums, weight, bias, weight, bias, residual, x, LEAKY, 0.1),
        "bn_add_train": (x, residual, weight, bias, *running, 0.1, 1e-5, LEAKY, 0.1),
        "bn_add_backward": (x, residual, x, moments, weight, bias, LEAKY, 0.1),
        "bn_add_dual_train": (
            x,
            x.clone(),
            residual,
            residual,
            weight,
            bias,
            weight,
            bias,
            *running,
            0.1,
            1e-5,
            LEAKY,
            0.1,
        ),
    }


OPS = [
    "bn_train",
    "bn_backward",
    "bn_sums",
    "bn_forward",
    "bn_gradient_sums",
    "bn_gradient",
    "bn_tangent",
    "bn_dual_sums",
    "bn_dual",
    "bn_dual_train",
    "bn_add_train",
    "bn_add_backward",
    "bn_add_dual_train",
]


@pytest.mark.parametrize("name", OPS)
def test_bare_op_raises_where_a_tangent_would_be_lost(name: str) -> None:
    x, *rest = bare_calls()[name]
    op = getattr(sum_ops if name.startswith("bn_add") else library_ops, name)
    with pytest.raises(NotImplementedError, match="tangent would be lost"):
        torch.func.jvp(lambda v: op(v, *rest), (x,), (x,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="tangent would be lost"):
            op(dual, *rest)


@pytest.mark.parametrize("name", OPS)
def test_bare_op_passes_opcheck(name: str) -> None:
    torch.library.opcheck(
        getattr(torch.ops.fastmpl, name).default, bare_calls()[name], test_utils=("test_schema", "test_faketensor")
    )


def test_a_dispatch_mode_and_a_fake_tensor_see_every_op() -> None:
    leaves = [t.requires_grad_() for t in inputs()[:3]]
    with LiveBytes() as seen:
        batch_norm_act(*leaves).sum().backward()
    assert {"fastmpl.bn_train", "fastmpl.bn_backward"} <= set(seen.by_operator)
    with FakeTensorMode() as mode:
        y = batch_norm_act(*(mode.from_tensor(t) for t in inputs()[:3]))
    assert isinstance(y, FakeTensor)


def test_a_profile_names_the_ops_and_a_plain_call_bypasses_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, _ = inputs()
    with torch.profiler.profile() as profile:
        batch_norm_act(x, weight, bias)
    assert "fastmpl::bn_train" in {event.name for event in profile.events()}
    loss = batch_norm_act(x.requires_grad_(), weight, bias).sum()
    with torch.profiler.profile() as profile:
        loss.backward()
    assert "fastmpl::bn_backward" in {event.name for event in profile.events()}
    dispatched = []
    monkeypatch.setattr(torch._C, "_AutoDispatchBelowAutograd", lambda: dispatched.append(1))
    batch_norm_act(x, weight, bias).sum().backward()
    assert not dispatched


def test_backward_runs_on_the_backend_that_forward_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, _ = inputs()
    with dispatch.use("reference"):
        loss = batch_norm_act(x.requires_grad_(), weight, bias).square().sum()
    for name in ("train", "backward"):
        monkeypatch.delattr(native, name)
    loss.backward()
    assert x.grad is not None and x.grad.abs().max() > 0


def test_backward_of_a_gradient_with_a_tangent_raises_instead_of_losing_it() -> None:
    x, weight, bias, _ = inputs()
    y = batch_norm_act(x.requires_grad_(), weight, bias)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones_like(y), y.detach())
        with pytest.raises(NotImplementedError, match="tangent would be lost"):
            torch.autograd.grad(y, x, dual)
