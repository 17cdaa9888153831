"""The student's loss on pseudo labels: numerics, labels, mask, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastmpl_kernels import dispatch
from fastmpl_kernels.student_objective import reference, student_objective
from tests.kernels.three_way import (
    ALLOWANCE,
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
TARGETS = ["soft", "sampled", "argmax"]
KEY = torch.tensor(5)
SETTINGS: dict[str, Any] = {"temperature": 0.7, "label_smoothing": 0.1, "key": KEY}


def index(rows: int) -> Tensor:
    return torch.arange(rows) * 7 + 100


def pair(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return logits(rows, classes, dtype, 0), logits(rows, classes, dtype, 1)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_loss_and_gradient_are_as_accurate_as_torch(classes: int, dtype: torch.dtype, targets: Any) -> None:
    labelling, student = pair(ROWS, classes, dtype)
    threshold = float(torch.softmax(labelling.float() / 0.7, -1).amax(-1).sort().values[:2].mean())

    def loss(student: Tensor) -> Tensor:
        teacher = labelling.to(student.dtype)
        return student_objective(
            teacher, student, targets=targets, threshold=threshold, index=index(ROWS), **SETTINGS
        ).loss

    assert_as_accurate_as_reference("student_objective", loss, [student])


@pytest.mark.skipif(not INTERPRETED, reason="the native kernel's long rows are among CLASSES")
def test_rows_longer_than_a_block_are_walked() -> None:
    labelling, student = pair(1, 21841)
    for targets in TARGETS:
        assert_as_accurate_as_reference(
            "student_objective",
            lambda x, t=targets: (
                student_objective(labelling.to(x.dtype), x, targets=t, index=index(1), **SETTINGS).loss
            ),
            [student],
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_implementation_draws_the_same_labels(dtype: torch.dtype) -> None:
    rows = 20 if INTERPRETED else 4000
    labelling, student = pair(rows, 17 if INTERPRETED else 100, dtype)
    drawn = []
    for backend in ("reference", BACKEND):
        with dispatch.use(backend):
            drawn.append(student_objective(labelling, student, targets="sampled", index=index(rows), **SETTINGS).label)
    assert torch.equal(*drawn)


def test_an_image_keeps_its_label_wherever_it_stands_in_the_batch() -> None:
    labelling, student = pair(ROWS, 17)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    with dispatch.use(BACKEND):
        straight = student_objective(labelling, student, targets="sampled", index=index(ROWS), **SETTINGS).label
        shuffled = student_objective(
            labelling[order], student[order], targets="sampled", index=index(ROWS)[order], **SETTINGS
        ).label
    assert torch.equal(straight[order], shuffled)


def test_drawn_labels_follow_the_distribution() -> None:
    rows, one = 20000, torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    drawn = reference.draw(one.expand(rows, 4), 0.7, KEY, torch.arange(rows))
    share = torch.bincount(drawn, minlength=4) / rows
    torch.testing.assert_close(share, torch.softmax(one[0] / 0.7, -1), atol=0.01, rtol=0)


@pytest.mark.parametrize("targets", TARGETS)
def test_labels_and_mask_are_those_of_the_reference(targets: Any) -> None:
    labelling, student = pair(ROWS, 17)
    results = []
    for backend in ("reference", BACKEND):
        with dispatch.use(backend):
            results.append(
                student_objective(labelling, student, targets=targets, threshold=0.9, index=index(ROWS), **SETTINGS)
            )
    assert torch.equal(results[0].label, results[1].label)
    assert torch.equal(results[0].mask, results[1].mask)
    assert results[1].mask.any()
    assert not results[1].mask.all()


def test_the_first_of_equal_logits_is_the_label() -> None:
    with dispatch.use(BACKEND):
        label = student_objective(torch.zeros(2, 17), torch.zeros(2, 17), targets="argmax").label
    assert label.tolist() == [0, 0]


@pytest.mark.parametrize("backend", ["reference", BACKEND])
def test_masked_rows_count_in_the_mean_and_have_no_gradient(backend: Any) -> None:
    labelling, student = torch.zeros(4, 10), logits(4, 10, torch.float32, 1).requires_grad_()
    labelling[:2, 3] = 9.0
    with dispatch.use(backend):
        half = student_objective(labelling, student, threshold=0.9)
        alone = student_objective(labelling[:2], student[:2], threshold=0.9)
        (gradient,) = torch.autograd.grad(half.loss, student)
    torch.testing.assert_close(half.loss, alone.loss / 2)
    assert half.mask.tolist() == [True, True, False, False]
    assert gradient[:2].abs().max() > 0
    assert gradient[2:].abs().max() == 0


def test_a_batch_with_every_row_masked_gives_zero_loss_and_gradient() -> None:
    with fresh_memory_poisoned(), dispatch.use(BACKEND):
        student = logits(ROWS, 17, torch.float32, 1).requires_grad_()
        result = student_objective(torch.zeros(ROWS, 17), student, threshold=0.99)
        result.loss.backward()
    assert result.loss == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("targets", TARGETS)
def test_every_output_element_is_written(targets: Any) -> None:
    labelling, student = pair(ROWS, 17)
    with fresh_memory_poisoned(), dispatch.use(BACKEND):
        leaf = student.requires_grad_()
        result = student_objective(labelling, leaf, targets=targets, threshold=0.9, index=index(ROWS), **SETTINGS)
        (gradient,) = torch.autograd.grad(result.loss, leaf)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(result.loss)
    assert result.label.max() < 17


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_extreme_logits_stay_finite_and_accurate(targets: Any, scale: float) -> None:
    labelling, student = (logits(ROWS, 100, torch.float32, seed).sign() * scale for seed in (0, 1))
    assert_as_accurate_as_reference(
        "student_objective",
        lambda x: student_objective(labelling.to(x.dtype), x, targets=targets, index=index(ROWS), **SETTINGS).loss,
        [student],
    )


def test_strided_and_misaligned_inputs_give_what_contiguous_ones_give() -> None:
    labelling, student = pair(ROWS, 24)
    for (name, a), z in zip(awkward_copies(labelling).items(), awkward_copies(student).values(), strict=True):
        results = []
        for teacher, leaf in ((a, z.detach()), (a.contiguous().clone(), z.detach().contiguous().clone())):
            with dispatch.use(BACKEND):
                loss = student_objective(teacher, leaf.requires_grad_()).loss
            results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
        assert torch.equal(results[0][0], results[1][0]), name
        assert torch.equal(results[0][1], results[1][1]), name


@pytest.mark.parametrize("targets", TARGETS)
def test_the_tangent_is_the_references(targets: Any) -> None:
    labelling, student = pair(ROWS, 17)

    def loss(student: Tensor) -> Tensor:
        return student_objective(labelling, student, targets=targets, index=index(ROWS), **SETTINGS).loss

    ours, exact = jvp(loss, (student,), BACKEND), jvp(loss, (student,), "reference")
    assert ours.abs() > 0
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=ALLOWANCE[torch.float32])


def test_the_labelling_logits_get_no_gradient_and_no_tangent() -> None:
    labelling, student = pair(ROWS, 17)
    for backend in ("reference", BACKEND):
        with dispatch.use(backend):
            leaf = labelling.clone().requires_grad_()
            assert not student_objective(leaf, student).loss.requires_grad
            assert jvp(lambda a: student_objective(a, student).loss, (labelling,), backend) == 0


def test_a_second_backward_is_refused_rather_than_scaled_twice() -> None:
    labelling, student = pair(ROWS, 17)
    leaf = student.requires_grad_()
    with dispatch.use(BACKEND):
        loss = student_objective(labelling, leaf).loss
    torch.autograd.grad(loss, leaf, torch.tensor(3.0), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaf)


def test_a_bare_op_refuses_a_tangent() -> None:
    labelling, student = pair(2, 17)
    arguments = (None, None, "soft", 1.0, 0.0, 0.0, True)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(
            lambda x: torch.ops.fastmpl.student_objective(BACKEND, labelling, x, *arguments)[0], (student,), (student,)
        )


@pytest.mark.parametrize("targets", TARGETS)
def test_the_low_level_op_passes_opcheck(targets: str) -> None:
    labelling, student = pair(2, 17)
    torch.library.opcheck(
        torch.ops.fastmpl.student_objective.default,
        (BACKEND, labelling, student, KEY, index(2), targets, 0.7, 0.1, 0.2, True),
    )


@pytest.mark.parametrize("targets", TARGETS)
def test_the_float64_reference_has_exact_gradients_and_tangents(targets: Any) -> None:
    labelling, student = (x.double() for x in pair(3, 5))

    def loss(student: Tensor) -> Tensor:
        return student_objective(labelling, student, targets=targets, index=index(3), threshold=0.5, **SETTINGS).loss

    assert torch.autograd.gradcheck(loss, (student.requires_grad_(),), check_forward_ad=True)
    assert dispatch.last_backend("student_objective") == "reference"


def test_a_compiled_step_traces_through_in_one_graph() -> None:
    labelling, student = pair(4, 17)

    def step(student: Tensor) -> Tensor:
        return student_objective(labelling, student, targets="sampled", index=index(4), **SETTINGS).loss

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student), step(student))


def test_a_forward_only_pass_computes_no_gradient() -> None:
    labelling, student = pair(ROWS, 17)
    with dispatch.use(BACKEND), torch.no_grad():
        plain = student_objective(labelling, student.requires_grad_()).loss
    with dispatch.use(BACKEND):
        torch.testing.assert_close(plain, student_objective(labelling, student).loss.detach())
    assert not plain.requires_grad


@pytest.mark.parametrize(("rows", "classes"), [(0, 10), (3, 0)])
def test_empty_rows_are_refused_in_one_sentence(rows: int, classes: int) -> None:
    with pytest.raises(ValueError, match="at least one row and one class"):
        student_objective(torch.zeros(rows, classes), torch.zeros(rows, classes))


def test_differing_shapes_and_missing_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="must have the shape"):
        student_objective(torch.zeros(3, 5), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="need key"):
        student_objective(torch.zeros(3, 5), torch.zeros(3, 5), targets="sampled")
    with pytest.raises(ValueError, match="index must be int64"):
        student_objective(torch.zeros(3, 5), torch.zeros(3, 5), targets="sampled", key=KEY, index=torch.zeros(2))
