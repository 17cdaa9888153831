"""A fused loss costs a GPU one launch for forward and backward together. No GPU is needed to count."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastmpl.analysis.accounting import LiveBytes
from fastmpl_kernels import dispatch
from fastmpl_kernels.rows import constant, unit
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy
from fastmpl_kernels.student_objective import student_objective
from fastmpl_kernels.student_objective.arguments import StudentArguments
from fastmpl_kernels.teacher_objective import ScalarFeedback, UdaSettings, teacher_objective
from fastmpl_kernels.teacher_objective.arguments import TeacherArguments
from tests.kernels.three_way import logits

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

from fastmpl_kernels.soft_cross_entropy import triton_impl as cross_entropy
from fastmpl_kernels.student_objective import triton_impl as student
from fastmpl_kernels.teacher_objective import triton_impl as teacher

ROWS, CLASSES = 6, 10


class Launches:
    """Stands in for a kernel and counts its launches."""

    def __init__(self) -> None:
        self.count = 0

    def __getitem__(self, grid: Any) -> Any:
        def launched(*arguments: Any, **constants: Any) -> None:
            self.count += 1

        return launched


A, B, C = (logits(ROWS, CLASSES, torch.float32, seed) for seed in range(3))
LABELS, ONE, KEY = torch.arange(ROWS) % CLASSES, torch.ones(()), torch.tensor(5)
STUDENT = StudentArguments(A, B, KEY, LABELS, "sampled", 0.7, 0.1, 0.2, True)
TEACHER = TeacherArguments(
    A, LABELS, B, C, ONE, ONE, None, ONE, LABELS, "scalar", False, 0.7, 0.1, 1.0, 0.7, 0.2, [True, True, False]
)


@pytest.mark.parametrize(
    ("module", "kernel", "arguments"),
    [
        (student, "student_rows", (STUDENT,)),
        (teacher, "teacher_rows", (TEACHER,)),
        (cross_entropy, "cross_entropy_rows", (A, LABELS, 0.1, True)),
    ],
    ids=["student_objective", "teacher_objective", "soft_cross_entropy"],
)
def test_a_loss_and_its_gradients_are_one_launch(
    module: Any, kernel: str, arguments: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = Launches()
    monkeypatch.setattr(module, kernel, launches)
    module.run(*arguments)  # makes the counter of finished programs, once
    with LiveBytes() as beside:
        module.run(*arguments)
    assert launches.count == 2
    assert not beside.by_operator


def operators(loss: Tensor) -> set[str]:
    """The operators of a learner's backward, by the profiler."""
    unit(loss)  # made once
    with torch.profiler.profile() as profile:
        loss.backward(unit(loss))  # type: ignore[no-untyped-call]
    return {event.name for event in profile.events() if event.name.startswith("aten::")}


NOTHING = {
    "aten::detach",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty_strided",
    "aten::copy_",
    "aten::clone",
}


@pytest.mark.skipif(
    dispatch.is_interpreted(), reason="the interpreter's kernels are torch operators: unset TRITON_INTERPRET"
)
def test_the_backward_of_a_loss_multiplies_nothing() -> None:
    """A leaf copies its gradient, which NOTHING allows; a network's last layer takes it as it is."""
    a, b, c, d = (x.clone().requires_grad_() for x in (A, B, C, B))
    for loss in (
        student_objective(A, d).loss,
        teacher_objective(a, LABELS, b, C, uda=UdaSettings(ONE), feedback=ScalarFeedback(ONE, LABELS, ONE)).loss,
        soft_cross_entropy(c, LABELS),
    ):
        assert operators(loss) <= NOTHING


def test_constants_are_made_once_and_anew_where_a_mode_must_see_them() -> None:
    like = torch.zeros(3)
    assert constant(0.25, like) is constant(0.25, like)
    assert unit(like) is unit(like)
    with LiveBytes() as seen:
        assert constant(0.25, like) is not constant(0.25, like)
    assert seen.by_operator["aten.full"] == 2
