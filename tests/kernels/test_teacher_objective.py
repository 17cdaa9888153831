"""The teacher's losses: every term and view against the reference, and what they refuse."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastmpl_kernels import dispatch
from fastmpl_kernels.teacher_objective import (
    ExactFeedback,
    Feedback,
    PerExampleFeedback,
    ScalarFeedback,
    UdaSettings,
    teacher_objective,
)
from tests.kernels.three_way import (
    BACKEND,
    CLASSES,
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
LABELLED = 2 if INTERPRETED else 5
KINDS = ["none", "exact", "per_example", "scalar"]
VIEWS = ["strong", "weak"]
SETTINGS: dict[str, Any] = {"temperature": 0.7, "label_smoothing": 0.1, "supervised_weight": 0.9}


def make_feedback(kind: str, rows: int, classes: int, dtype: torch.dtype = torch.float32) -> Feedback | None:
    weight, label = torch.tensor(2.0), torch.arange(rows) * 3 % classes
    if kind == "exact":
        return ExactFeedback(logits(rows, classes, dtype, 5), torch.tensor(1 / rows), weight)
    if kind == "per_example":
        return PerExampleFeedback(torch.linspace(-1, 1, rows) / rows, label, weight)
    return ScalarFeedback(torch.tensor(0.3), label, weight) if kind == "scalar" else None


def inputs(classes: int, dtype: torch.dtype = torch.float32, rows: int = ROWS) -> list[Tensor]:
    return [logits(n, classes, dtype, seed) for seed, n in enumerate((LABELLED, rows, rows))]


def targets(classes: int) -> Tensor:
    return torch.arange(LABELLED) * 7 % classes


def make_uda(weak: Tensor) -> UdaSettings:
    """UDA with a threshold that some rows pass and some do not."""
    confidence = torch.softmax(weak.detach().float() / 0.5, -1).amax(-1).sort().values
    return UdaSettings(torch.tensor(0.7), 0.5, float(confidence[:2].mean()))


def assert_losses_accurate(kind: str, view: Any, uda: UdaSettings | None, views: list[Tensor]) -> None:
    rows, classes = views[1].shape
    feedback = make_feedback(kind, rows, classes, views[1].dtype)

    def loss(labelled: Tensor, strong: Tensor, weak: Tensor) -> Tensor:
        return teacher_objective(
            labelled, targets(classes), strong, weak, uda=uda, feedback=feedback, label_view=view, **SETTINGS
        ).loss

    assert_as_accurate_as_reference("teacher_objective", loss, views)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_uda", [False, True])
def test_loss_and_gradients_are_as_accurate_as_torch(kind: str, view: str, with_uda: bool) -> None:
    views = inputs(17)
    assert_losses_accurate(kind, view, make_uda(views[2]) if with_uda else None, views)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [c for c in CLASSES if c != 17])
@pytest.mark.parametrize("kind", ["exact", "scalar"])
def test_every_class_count_and_type_is_as_accurate(kind: str, classes: int, dtype: torch.dtype) -> None:
    views = inputs(classes, dtype)
    assert_losses_accurate(kind, "strong", make_uda(views[2]), views)


@pytest.mark.skipif(not INTERPRETED, reason="the native kernel's long rows are among CLASSES")
@pytest.mark.parametrize("kind", ["exact", "scalar"])
def test_rows_longer_than_a_block_are_walked(kind: str) -> None:
    views = inputs(21841, rows=1)
    assert_losses_accurate(kind, "strong", UdaSettings(torch.tensor(0.7)), views)


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_extreme_logits_stay_finite_and_accurate(scale: float) -> None:
    for kind in KINDS:
        assert_losses_accurate(kind, "strong", UdaSettings(torch.tensor(0.7)), [x.sign() * scale for x in inputs(17)])


def test_the_terms_are_those_of_the_reference() -> None:
    views, results = inputs(17), []
    for backend in ("reference", BACKEND):
        with dispatch.use(backend):
            results.append(
                teacher_objective(
                    views[0],
                    targets(17),
                    views[1],
                    views[2],
                    uda=make_uda(views[2]),
                    feedback=make_feedback("exact", ROWS, 17),
                )
            )
    for name, ours, reference in zip(results[0]._fields, results[1], results[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6, msg=name)
    assert 0 < results[1].coverage < 1


def test_a_batch_with_every_row_masked_has_no_consistency() -> None:
    views = inputs(17)
    with fresh_memory_poisoned(), dispatch.use(BACKEND):
        leaf = views[1].requires_grad_()
        result = teacher_objective(views[0], targets(17), leaf, views[2], uda=UdaSettings(torch.tensor(1.0), 1.0, 1.1))
        (gradient,) = torch.autograd.grad(result.loss, leaf)
    assert result.uda == 0
    assert result.coverage == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("view", VIEWS)
def test_every_output_element_is_written(kind: str, view: Any) -> None:
    views = inputs(17)
    with fresh_memory_poisoned(), dispatch.use(BACKEND):
        leaves = [x.requires_grad_() for x in views]
        result = teacher_objective(
            leaves[0], targets(17), leaves[1], leaves[2], uda=make_uda(views[2]), feedback=make_feedback(kind, ROWS, 17),
            label_view=view,
        )  # fmt: skip
        gradients = torch.autograd.grad(result.loss, leaves, allow_unused=True)
    assert all(torch.isfinite(part).all() for part in result)
    assert all(g is None or torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("backend", ["reference", BACKEND])
def test_the_weak_view_gets_a_gradient_only_where_it_labelled(backend: Any) -> None:
    views = inputs(17)
    for view, kind, expected in (("strong", "exact", False), ("weak", "none", False), ("weak", "exact", True)):
        weak = views[2].clone().requires_grad_()
        strong = views[1].clone().requires_grad_()
        with dispatch.use(backend):
            loss = teacher_objective(
                views[0], targets(17), strong, weak, uda=UdaSettings(torch.tensor(1.0)),
                feedback=make_feedback(kind, ROWS, 17),
                label_view=view,
            ).loss  # fmt: skip
        (gradient,) = torch.autograd.grad(loss, weak, allow_unused=True)
        assert (gradient is not None and bool(gradient.abs().max() > 0)) == expected


def test_a_constant_in_the_tangent_changes_no_gradient() -> None:
    views, gradients = inputs(17), []
    for constant in (0.0, 3.0):
        leaf = views[1].clone().requires_grad_()
        tangent = logits(ROWS, 17, torch.float32, 5) + constant
        with dispatch.use(BACKEND):
            feedback = ExactFeedback(tangent, torch.tensor(0.1), torch.tensor(2.0))
            loss = teacher_objective(views[0], targets(17), leaf, feedback=feedback).loss
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_scalar_feedback_is_cross_entropy_at_the_learnt_label_times_the_rows() -> None:
    views, feedback = inputs(17), make_feedback("scalar", ROWS, 17)
    assert isinstance(feedback, ScalarFeedback)
    expected = ROWS * feedback.credit * torch.nn.functional.cross_entropy(views[1] / 0.7, feedback.label)
    with dispatch.use(BACKEND):
        found = teacher_objective(views[0], targets(17), views[1], feedback=feedback, temperature=0.7).feedback
    torch.testing.assert_close(found, expected)


def test_strided_and_misaligned_inputs_give_what_contiguous_ones_give() -> None:
    views = [logits(ROWS, 24, torch.float32, seed) for seed in range(3)]
    labels, tangent = torch.arange(ROWS) % 24, logits(ROWS, 24, torch.float32, 5)
    copies = [awkward_copies(x) for x in (*views, tangent)]
    for name in copies[0]:
        results = []
        for form in (lambda x: x, lambda x: x.contiguous().clone()):
            labelled, strong, weak, dot = (form(c[name]) for c in copies)
            feedback = ExactFeedback(dot, torch.tensor(0.1), torch.tensor(2.0))
            with dispatch.use(BACKEND):
                results.append(
                    teacher_objective(
                        labelled, labels, strong, weak, uda=UdaSettings(torch.tensor(0.5)), feedback=feedback
                    ).loss
                )
        assert torch.equal(*results), name


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_tangent_is_the_references(kind: str, view: Any) -> None:
    views = inputs(17)

    def loss(*views: Tensor) -> Tensor:
        feedback = make_feedback(kind, ROWS, 17)
        return teacher_objective(
            views[0], targets(17), views[1], views[2], uda=make_uda(inputs(17)[2]), feedback=feedback, label_view=view
        ).loss

    ours, exact = jvp(loss, tuple(views), BACKEND), jvp(loss, tuple(views), "reference")
    assert ours.abs() > 0
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_low_level_op_passes_opcheck(kind: str) -> None:
    labelled, strong, weak = inputs(17, rows=2)
    feedback = make_feedback(kind, 2, 17)
    constants: tuple[Tensor | None, ...] = (None, None, None, None)
    if isinstance(feedback, ExactFeedback):
        constants = (feedback.weight, feedback.tangent, feedback.scale, None)
    elif feedback is not None:
        constants = (feedback.weight, None, feedback.credit, feedback.label)
    settings = (kind, False, 0.7, 0.1, 0.9, 0.5, 0.3, [True, True, False])
    torch.library.opcheck(
        torch.ops.fastmpl.teacher_objective.default,
        (BACKEND, labelled, targets(17), strong, weak, torch.tensor(0.7), *constants, *settings),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("view", VIEWS)
def test_the_float64_reference_has_exact_gradients_and_tangents(kind: str, view: Any) -> None:
    labelled, strong, weak = inputs(5, torch.float64, rows=3)
    leaves = (labelled.requires_grad_(), strong.requires_grad_())
    feedback = make_feedback(kind, 3, 5, torch.float64)

    def loss(labelled: Tensor, strong: Tensor) -> Tensor:
        return teacher_objective(
            labelled, targets(5), strong, weak, uda=UdaSettings(torch.tensor(0.5)), feedback=feedback, label_view=view
        ).loss

    assert torch.autograd.gradcheck(loss, leaves, check_forward_ad=True)


def test_a_compiled_step_traces_through_in_one_graph() -> None:
    views, feedback = inputs(17), make_feedback("exact", ROWS, 17)

    def step(*views: Tensor) -> Tensor:
        return teacher_objective(
            views[0], targets(17), views[1], views[2], uda=UdaSettings(torch.tensor(0.5)), feedback=feedback
        ).loss

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*views), step(*views))


def test_empty_rows_missing_views_and_other_shapes_are_refused() -> None:
    labelled, strong, weak = inputs(17)
    labels = targets(17)
    with pytest.raises(ValueError, match=r"strong_logits must be .* at least one row"):
        teacher_objective(labelled, labels, strong[:0])
    with pytest.raises(ValueError, match=r"labelled_logits must be .* at least one row"):
        teacher_objective(labelled[:0], labels[:0], strong)
    with pytest.raises(ValueError, match="need weak_logits"):
        teacher_objective(labelled, labels, strong, uda=UdaSettings(torch.tensor(1.0)))
    with pytest.raises(ValueError, match="need weak_logits"):
        teacher_objective(labelled, labels, strong, feedback=make_feedback("exact", ROWS, 17), label_view="weak")
    with pytest.raises(ValueError, match="as many classes"):
        teacher_objective(labelled, labels, strong[:, :5])
    with pytest.raises(ValueError, match=r"tangent must have the shape"):
        teacher_objective(labelled, labels, strong, feedback=make_feedback("exact", ROWS, 5))
    wrong = ScalarFeedback(torch.zeros(2), torch.zeros(ROWS, dtype=torch.int64), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"credit must be \[\]"):
        teacher_objective(labelled, labels, strong, weak, feedback=wrong)


@pytest.mark.skipif(INTERPRETED, reason="a GPU kernel compares labels with columns and cannot report one; CPU does")
def test_a_label_that_is_no_class_is_refused() -> None:
    labelled, strong, _ = inputs(17)
    with dispatch.use("native"):
        with pytest.raises(ValueError, match="labelled row 0 is not one of the 17 classes"):
            teacher_objective(labelled, targets(17) + 17, strong)
        wrong = ScalarFeedback(torch.tensor(0.1), torch.full((ROWS,), 17), torch.tensor(1.0))
        with pytest.raises(ValueError, match="unlabelled row 0 is not one of the 17 classes"):
            teacher_objective(labelled, targets(17), strong, feedback=wrong)
