"""batch_norm_act within torch: derivatives of every kind, compilation, memory, ranks."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.autograd import forward_ad

from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import batch_norm_act
from fastmpl_kernels.batch_norm_act.reference import reference
from tests.kernels.batch_norm_inputs import inputs


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "silu"])
def test_float64_reference_passes_gradcheck_in_both_modes(activation: str) -> None:
    leaves = [t.requires_grad_() for t in inputs(torch.float64)]

    def op(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return batch_norm_act(x, weight, bias, activation=activation, slope=0.1, residual=residual)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(op, leaves, check_forward_ad=True)
    assert dispatch.last_backend("batch_norm_act") == "reference"


@pytest.mark.parametrize(
    "moved", [(0,), (1,), (2,), (3,), (1, 2)], ids=["x", "weight", "bias", "residual", "parameters"]
)
def test_dual_level_gives_the_reference_s_tangent_for_any_subset(moved: tuple[int, ...]) -> None:
    primals = inputs()
    tangents = [t.flip(0).square() for t in primals]  # a constant, or x itself, would be in batch norm's null space

    def tangent(op: object, dtype: torch.dtype) -> Tensor:
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(p.to(dtype), t.to(dtype)) if i in moved else p.to(dtype)
                for i, (p, t) in enumerate(zip(primals, tangents, strict=True))
            ]
            x, weight, bias, residual = duals
            if op == "ours":
                y = batch_norm_act(x, weight, bias, activation="silu", residual=residual)
            else:
                y = reference(x, weight, bias, eps=1e-5, activation="silu", slope=0.0, residual=residual)[0]
            return forward_ad.unpack_dual(y).tangent

    found, expected = tangent("ours", torch.float32), tangent("reference", torch.float64)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_jvp_of_a_call_that_moves_running_statistics() -> None:
    x, weight, bias, _ = inputs()
    mean, var = torch.zeros(4), torch.ones(4)
    _, tangent = torch.func.jvp(
        lambda v: batch_norm_act(v, weight, bias, running_mean=mean, running_var=var), (x,), (x,)
    )
    assert tangent.abs().max() > 0
    assert mean.abs().max() > 0


def test_graph_is_kept_where_a_tangent_and_a_gradient_are_wanted() -> None:
    x, weight, bias, _ = inputs()
    leaf = weight.clone().requires_grad_()
    with forward_ad.dual_level():
        y = batch_norm_act(forward_ad.make_dual(x, x.square()), leaf, bias)
        value, tangent = forward_ad.unpack_dual(y)
        with pytest.raises(NotImplementedError, match="tangent would be lost"):  # that of the gradient
            torch.autograd.grad(value.sum(), leaf, retain_graph=True)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert tangent.abs().max() > 0
    assert gradient.abs().max() > 0


def test_func_grad_and_vjp_equal_autograd() -> None:
    x, weight, bias, _ = inputs()

    def loss(v: Tensor) -> Tensor:
        return batch_norm_act(v, weight, bias, activation="silu").square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    torch.testing.assert_close(torch.func.vjp(loss, x)[1](torch.tensor(1.0))[0], expected)


def test_compiled_call_traces_the_reference_and_keeps_the_tangent() -> None:
    x, weight, bias, _ = inputs()

    def value_and_tangent(v: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(lambda u: batch_norm_act(u, weight, bias), (v,), (v.square(),))  # type: ignore[return-value]

    expected = value_and_tangent(x)
    compiled = torch.compile(value_and_tangent, backend="eager", fullgraph=True)(x)
    assert expected[1].abs().max() > 0.1
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)


def test_it_keeps_its_input_and_statistics_and_no_more() -> None:
    x, weight, bias, _ = inputs()
    kept: dict[int, int] = {}

    def record(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    leaf = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
        batch_norm_act(leaf, weight, bias)
    assert sum(kept.values()) == leaf.nbytes + weight.nbytes + bias.nbytes + 4 * weight.nbytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "gelu"}, "choose one of none, relu, leaky_relu, silu"),
        ({"residual": torch.ones(1, 4, 2, 2)}, "the residual's shape"),
        ({"x": torch.ones(1, 4, 1, 1)}, "more than one value per channel"),
        ({"x": torch.ones(0, 4, 2, 2)}, "more than one value per channel"),
        ({"x": torch.ones(4)}, "needs"),
    ],
    ids=["activation", "residual", "one value", "no rows", "no channels"],
)
def test_what_it_cannot_do_is_said_in_one_sentence(arguments: dict[str, object], message: str) -> None:
    x, weight, bias, _ = inputs()
    with pytest.raises(ValueError, match=message):
        batch_norm_act(**{"x": x, "weight": weight, "bias": bias, **arguments})  # type: ignore[arg-type]


def test_a_backend_that_cannot_run_raises_when_asked_for_by_name() -> None:
    x, weight, bias, _ = inputs()
    with dispatch.use("native"), pytest.raises(dispatch.BackendError, match="native"):
        batch_norm_act(x.half(), weight, bias)


def _output_and_derivatives(x: Tensor, weight: Tensor, bias: Tensor, reduce: object) -> list[Tensor]:
    def op(v: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return batch_norm_act(v, w, b, activation="silu", reduce=reduce)  # type: ignore[arg-type]

    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = op(*leaves)
    grads = torch.autograd.grad(y, leaves, x)
    _, tangent = torch.func.jvp(op, (x, weight, bias), (x * x, bias, weight))
    beside_graph = torch.func.jvp(op, tuple(leaves), (x * x, bias, weight))[1].detach()
    return [y.detach(), tangent, beside_graph, *grads]


def _run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

    def sum_over_ranks(vector: Tensor) -> Tensor:
        dist.all_reduce(vector)
        return vector

    x, weight, bias, _ = inputs()
    for dtype in (torch.float32, torch.float64):
        whole = [t.to(dtype) for t in (x, weight, bias)]
        part = slice(0, 1) if rank == 0 else slice(1, 3)  # ranks of different size
        own = _output_and_derivatives(whole[0][part], whole[1], whole[2], sum_over_ranks)
        for gradient in own[4:]:
            dist.all_reduce(gradient)  # parameter gradients are each rank's own
        torch.save(own, f"{folder}/{rank}-{dtype}")
    dist.destroy_process_group()


def test_two_ranks_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    mp.start_processes(_run_rank, (str(tmp_path),), nprocs=2, start_method="spawn")
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        x, weight, bias, _ = inputs(torch.float32)
        whole = _output_and_derivatives(x.to(dtype), weight.to(dtype), bias.to(dtype), None)
        ranks = [torch.load(tmp_path / f"{rank}-{dtype}") for rank in range(2)]
        for i, expected in enumerate(whole):
            found = torch.cat([ranks[0][i], ranks[1][i]]) if i < 4 else ranks[0][i]
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
