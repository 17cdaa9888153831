"""The forward-mode rules of layer norm, softmax and linear layers are torch's own, in fewer operators."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from fastmpl.analysis.accounting import measure
from fastmpl.learners.forward_rules import _ForwardRules, use_forward_rules
from fastmpl.learners.passes import dual
from fastmpl.models import build

Call = Callable[..., Tensor]
FUNCTIONS: dict[str, Call] = {
    "layer norm": lambda x, w, b: F.layer_norm(x, (6,), w[0], b[:6], 1e-3),
    "layer norm without weights": lambda x, w, b: F.layer_norm(x, (6,)),
    "layer norm over two axes": lambda x, w, b: F.layer_norm(x, (4, 6), w[:4], None),
    "linear": lambda x, w, b: F.linear(x, w, b),
    "linear without a bias": lambda x, w, b: F.linear(x, w),
    "linear of rows apart": lambda x, w, b: F.linear(x.transpose(1, 2).contiguous().transpose(1, 2), w, b),
    "softmax": lambda x, w, b: x.softmax(dim=-1),
    "softmax over another axis": lambda x, w, b: torch.softmax(x, 1),
    "softmax of a layer": lambda x, w, b: torch.nn.Softmax(dim=-1)(x),
    "by keywords": lambda x, w, b: F.linear(
        bias=b, weight=w, input=F.layer_norm(x, normalized_shape=(6,), weight=w[0])
    ),
}


def tensors(dtype: torch.dtype) -> list[Tensor]:
    """x [3, 4, 6], w [5, 6], b [5 + 1], and their tangents."""
    g = torch.Generator().manual_seed(0)
    shapes = [(3, 4, 6), (6, 6), (6,)] * 2
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


@torch.no_grad()
def push(call: Call, moved: tuple[bool, ...], rules: Any, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Any]:
    values, tangents = tensors(dtype)[:3], tensors(dtype)[3:]
    with forward_ad.dual_level(), rules:
        duals = [dual(v, t if is_moved else None) for v, t, is_moved in zip(values, tangents, moved, strict=True)]
        found = forward_ad.unpack_dual(call(*duals))  # type: ignore[no-untyped-call]
        return found.primal.clone(), None if found.tangent is None else found.tangent.clone()


@pytest.mark.parametrize("moved", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_rule_is_torchs_own_for_each_part_that_moves(name: str, moved: tuple[bool, ...]) -> None:
    value, tangent = push(FUNCTIONS[name], moved, _ForwardRules())
    expected_value, expected = push(FUNCTIONS[name], moved, torch.no_grad())
    assert torch.equal(value, expected_value)
    assert (tangent is None) == (expected is None)
    if expected is not None:
        torch.testing.assert_close(tangent, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("moved", [(True, True, True), (False, True, False), (True, False, False)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_under_autocast_the_rules_follow_float32(name: str, moved: tuple[bool, ...]) -> None:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        value, tangent = push(FUNCTIONS[name], moved, _ForwardRules(), torch.float32)
    _, expected = push(FUNCTIONS[name], moved, torch.no_grad(), torch.float32)
    if expected is None:
        assert tangent is None
        return
    assert tangent.dtype == value.dtype
    torch.testing.assert_close(tangent.float(), expected, rtol=0.05, atol=0.1)


def test_the_rules_take_fewer_operators_and_bytes() -> None:
    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.linear(F.layer_norm(x, (6,), w[0], b), w, b)

    ours = measure(lambda: push(call, (True, True, True), _ForwardRules()))
    torchs = measure(lambda: push(call, (True, True, True), torch.no_grad()))
    assert ours.operations < 0.6 * torchs.operations
    assert ours.peak_bytes <= torchs.peak_bytes


def test_networks_without_layer_norm_keep_torchs_rules() -> None:
    network = build("conv", classes=3, image_shape=(3, 16, 16), dropout=0.0, norm="group", width=8, depth=3, seed=0)
    assert not isinstance(use_forward_rules(network), _ForwardRules)
    assert isinstance(use_forward_rules(torch.nn.Sequential(torch.nn.LayerNorm(3))), _ForwardRules)


@pytest.mark.parametrize("name", ["softmax", "softmax over another axis", "softmax of a layer"])
def test_each_form_of_softmax_has_the_rule(name: str) -> None:
    found = measure(lambda: push(FUNCTIONS[name], (True, False, False), _ForwardRules()))
    assert found.by_operator["aten._softmax_backward_data"] == 1
