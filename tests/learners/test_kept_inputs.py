"""The tangent that takes the norms' inputs from the pass that learned is the tangent, at two thirds of the convolutions."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.steps import NESTEROV, Size, Step
from fastmpl.analysis.accounting import LiveBytes, measure
from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.protocol import LossPass, TangentPass
from fastmpl.models import build
from fastmpl.models.adapters import add_adapters
from fastmpl.models.layout import channels_last
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy

SIDE, CLASSES = 8, 3
KEY = torch.zeros((), dtype=torch.int64)


def images(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def learner(
    model: str = "wrn_16_1", *, dtype: torch.dtype = torch.float32, norm: Any = "batch", **options: Any
) -> PlainLearner:
    net = build(model, classes=CLASSES, image_shape=(3, SIDE, SIDE), dropout=0.2, norm=norm, width=16, depth=2, seed=0)
    return PlainLearner(channels_last(net).to(dtype), NESTEROV, steps=10, **options)


def take_tangent(
    learner: PlainLearner, *, others: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Counter[str]]:
    """The tangent after a step, and the operators of its pass."""
    seen, labels = images(0, dtype), torch.arange(6) % CLASSES
    logits = learner.forward(seen, KEY)
    learner.accumulate(soft_cross_entropy(logits, labels))
    update = learner.apply(KEY, keep=True)
    gradient = learner.gradient([LossPass(images(1, dtype), lambda z: soft_cross_entropy(z, labels), KEY)])
    with LiveBytes() as counted:
        asked = TangentPass(images(2, dtype) if others else seen, logits.detach(), KEY)
        (tangent,) = learner.tangents(update, [asked], gradient)
    return tangent, counted.by_operator


@pytest.mark.parametrize("depth", [0, 2], ids=["all", "the last blocks"])
@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
@pytest.mark.parametrize("model", ["wrn_16_1", "conv"])
def test_it_is_the_same_tangent_with_fewer_convolutions(model: str, precision: str, depth: int) -> None:
    dtype = torch.float64 if precision == "float64" else torch.float32
    options: dict[str, Any] = {
        "dtype": dtype,
        "depth": depth,
        "precision": "bf16" if precision == "bf16" else "float32",
    }
    plain, every = take_tangent(learner(model, **options), dtype=dtype)
    kept, fewer = take_tangent(learner(model, keeps_inputs=True, **options), dtype=dtype)
    tolerance = {"float32": 1e-5, "bf16": 3e-2, "float64": 1e-12}[precision]
    torch.testing.assert_close(kept, plain, rtol=tolerance, atol=tolerance * plain.abs().max().item())
    assert plain.abs().max() > 0
    if depth == 0:
        layers = sum(isinstance(m, torch.nn.Conv2d) for m in learner(model).module.modules())
        assert every["aten.convolution"] == 3 * layers
        assert fewer["aten.convolution"] == 2 * layers - 1  # the images have no tangent


def test_other_images_are_computed_anew_and_nothing_stays() -> None:
    kept = learner(keeps_inputs=True)
    torch.testing.assert_close(take_tangent(kept, others=True)[0], take_tangent(learner(), others=True)[0])
    assert kept.kept is not None
    assert not kept.kept._inputs
    for again in range(2):
        take_tangent(kept)
        assert not kept.kept._inputs, again
    assert not any("forward" in m.__dict__ or m._forward_hooks for m in kept.module.modules())


def test_images_that_were_written_into_are_other_images() -> None:
    kept = learner(keeps_inputs=True)
    seen = images(0)
    kept.forward(seen, KEY)
    assert kept.kept is not None and kept.kept.are_of(seen)
    assert not kept.kept.are_of(seen.clone())
    seen.add_(1)
    assert not kept.kept.are_of(seen)


@pytest.mark.parametrize("options", [{"norm": "group"}, {"norm": "sync"}, {"recompute": True}], ids=str)
def test_networks_of_another_form_keep_nothing(options: dict[str, Any]) -> None:
    assert learner(keeps_inputs=True, **options).kept is None or options == {"norm": "sync"}  # one rank has no sums


@pytest.mark.parametrize("model", ["wrn_16_1", "conv"])
def test_a_network_with_adapters_keeps_nothing(model: str) -> None:
    net = build(model, classes=CLASSES, image_shape=(3, SIDE, SIDE), dropout=0, norm="batch", width=16, depth=2, seed=0)
    add_adapters(net, 2, seed=0)
    adapted = PlainLearner(channels_last(net), NESTEROV, steps=10, keeps_inputs=True)
    assert adapted.kept is None  # a convolution's result is not all that its norm reads
    assert take_tangent(adapted)[0].isfinite().all()


@pytest.mark.parametrize("deferred", [False, True])
def test_a_step_of_a_deep_network_takes_no_more_memory(deferred: bool) -> None:
    def peak(keeps: bool) -> int:
        with FakeTensorMode():
            step = Step(Size("wrn_28_1", 32, 4, 28), kind="exact", channels_last=True, deferred=deferred)
            if not keeps:
                step.student.kept = None
            return measure(step, *step.held).peak_bytes

    assert peak(True) <= peak(False)
