"""Cross-entropy with label smoothing: numerics against labels and distributions, and what it refuses."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastmpl.analysis.accounting import LiveBytes
from fastmpl_kernels import dispatch
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy
from tests.kernels.three_way import (
    BACKEND,
    CLASSES,
    DTYPES,
    INTERPRETED,
    ROWS,
    assert_as_accurate_as_reference,
    awkward_copies,
    fresh_memory_poisoned,
    jvp,
    logits,
    needs_backend,
)

pytestmark = needs_backend
KINDS = ["label", "distribution"]


def target_of(kind: str, rows: int, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    if kind == "label":
        return torch.arange(rows) * 5 % classes
    return torch.softmax(logits(rows, classes, torch.float32, 2), -1).to(dtype)


def same_precision(target: Tensor, x: Tensor) -> Tensor:
    return target.to(x.dtype) if target.is_floating_point() else target


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_loss_and_gradient_are_as_accurate_as_torch(classes: int, dtype: torch.dtype, kind: str) -> None:
    target = target_of(kind, ROWS, classes, dtype)

    def loss(x: Tensor) -> Tensor:
        return soft_cross_entropy(x, same_precision(target, x), label_smoothing=0.1)

    assert_as_accurate_as_reference("soft_cross_entropy", loss, [logits(ROWS, classes, dtype, 0)])


@pytest.mark.skipif(not INTERPRETED, reason="the native kernel's long rows are among CLASSES")
@pytest.mark.parametrize("kind", KINDS)
def test_rows_longer_than_a_block_are_walked(kind: str) -> None:
    target = target_of(kind, 1, 21841)
    assert_as_accurate_as_reference(
        "soft_cross_entropy",
        lambda x: soft_cross_entropy(x, same_precision(target, x)),
        [logits(1, 21841, torch.float32, 0)],
    )


@pytest.mark.parametrize("backend", ["reference", BACKEND])
def test_it_is_torchs_cross_entropy(backend: dispatch.Choice) -> None:
    x = logits(ROWS, 10, torch.float32, 0)
    for kind in KINDS:
        target = target_of(kind, ROWS, 10)
        with dispatch.use(backend):
            ours = soft_cross_entropy(x, target, label_smoothing=0.2)
        torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(x, target, label_smoothing=0.2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_extreme_logits_stay_finite_and_accurate(scale: float, kind: str) -> None:
    target = target_of(kind, ROWS, 17)
    assert_as_accurate_as_reference(
        "soft_cross_entropy",
        lambda x: soft_cross_entropy(x, same_precision(target, x), label_smoothing=0.1),
        [logits(ROWS, 17, torch.float32, 0).sign() * scale],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_output_element_is_written(kind: str) -> None:
    with fresh_memory_poisoned(), dispatch.use(BACKEND):
        leaf = logits(ROWS, 17, torch.float32, 0).requires_grad_()
        (gradient,) = torch.autograd.grad(soft_cross_entropy(leaf, target_of(kind, ROWS, 17)), leaf)
    assert torch.isfinite(gradient).all()


def test_strided_and_misaligned_inputs_give_what_contiguous_ones_give() -> None:
    x, target = logits(ROWS, 24, torch.float32, 0), target_of("distribution", ROWS, 24)
    with dispatch.use(BACKEND):
        for (name, a), t in zip(awkward_copies(x).items(), awkward_copies(target).values(), strict=True):
            assert torch.equal(soft_cross_entropy(a, t), soft_cross_entropy(a.contiguous(), t.contiguous())), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_tangent_is_the_references(kind: str) -> None:
    x, target = logits(ROWS, 17, torch.float32, 0), target_of(kind, ROWS, 17)

    def loss(x: Tensor) -> Tensor:
        return soft_cross_entropy(x, target, label_smoothing=0.1)

    ours, exact = jvp(loss, (x,), BACKEND), jvp(loss, (x,), "reference")
    assert ours.abs() > 0
    torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_the_low_level_op_passes_opcheck(kind: str) -> None:
    arguments = (BACKEND, logits(2, 17, torch.float32, 0), target_of(kind, 2, 17), 0.1, True)
    torch.library.opcheck(torch.ops.fastmpl.soft_cross_entropy.default, arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_the_float64_reference_has_exact_gradients_and_tangents(kind: str) -> None:
    target, x = target_of(kind, 3, 5), logits(3, 5, torch.float64, 0).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: soft_cross_entropy(x, same_precision(target, x), label_smoothing=0.1), (x,), check_forward_ad=True
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_dispatch_mode_and_a_fake_tensor_see_the_op(kind: str) -> None:
    x, target = logits(3, 5, torch.float32, 0), target_of(kind, 3, 5)
    with dispatch.use(BACKEND), LiveBytes() as seen:
        soft_cross_entropy(x, target)
    assert "fastmpl.soft_cross_entropy" in seen.by_operator
    mode = FakeTensorMode()
    with dispatch.use(BACKEND):
        loss = soft_cross_entropy(mode.from_tensor(x), mode.from_tensor(target))  # outside of the mode
    assert isinstance(loss, FakeTensor)


def test_empty_rows_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row and one class"):
        soft_cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be int64"):
        soft_cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="must have the shape"):
        soft_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.skipif(INTERPRETED, reason="a GPU kernel compares labels with columns and cannot report one; CPU does")
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    with dispatch.use("native"), pytest.raises(ValueError, match="row 1 is not one of the 3 classes"):
        soft_cross_entropy(torch.zeros(2, 3), torch.tensor([0, label]))
