"""Meta Pseudo Labels: a teacher that learns from the validation loss of the student it teaches.

Pham, Dai, Xie, Luong and Le, "Meta Pseudo Labels", CVPR 2021. One step has four phases, pure functions of logits:

    label   the teacher labels unlabelled images
    learn   the student takes a step on those labels; it never sees a true label
    credit  the effect of that step on the student's validation loss V
    teach   the teacher takes a step on its supervised loss, UDA's consistency loss, and the credit of its labels

fastmpl.step.mpl_step runs the passes in between and calls these phases.
B labelled, U unlabelled images, K classes.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.methods import feedback, uda
from fastmpl.methods.gradient_share import feedback_square, supervised_square
from fastmpl.methods.targets import PseudoLabelLoss, PseudoLabels, Targets, make_pseudo_labels, pseudo_label_loss
from fastmpl.methods.views import LabelView, Logits
from fastmpl_kernels.rows import constant
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy
from fastmpl_kernels.teacher_objective import (
    ExactFeedback,
    PerExampleFeedback,
    ScalarFeedback,
    UdaSettings,
    teacher_objective,
)
from fastmpl_kernels.teacher_objective import Feedback as KernelFeedback


@dataclass(frozen=True)
class Feedback:
    """How the student's validation loss credits the labels."""

    kind: feedback.Kind = "exact"
    images: Literal["labelled", "trusted"] = "labelled"  # whose loss the student is judged by
    weight: float = 1.0  # 1: the true gradient
    every: int = 1  # one step in so many credits, and its credit counts so many times: the same mean over the steps
    control: feedback.Control = "none"
    baseline: float = 0.0  # decay of a moving average that is subtracted from the scalar

    def __post_init__(self) -> None:
        """Raises ValueError for a word that is none: a control that nobody knows would be no control."""
        words = {
            "kind": get_args(feedback.Kind),
            "control": get_args(feedback.Control),
            "images": ("labelled", "trusted"),
        }
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"Feedback: {name} = {getattr(self, name)!r} is none of {', '.join(allowed)}.")
        if self.every < 1:
            raise ValueError(f"Feedback: every = {self.every}, and one step in at least 1 credits the labels.")

    @property
    def needs_losses(self) -> bool:
        """Whether the credit is a difference of validation losses."""
        return self.kind == "scalar"


class TeacherLoss(NamedTuple):
    """The teacher's loss and its parts, each 0-D."""

    loss: Float[Tensor, ""]
    supervised: Float[Tensor, ""]
    consistency: Float[Tensor, ""]
    feedback: Float[Tensor, ""]
    coverage: Float[Tensor, ""]


@dataclass(frozen=True)
class MetaPseudoLabels:
    """The method's settings and its phases."""

    unlabelled: int  # U over all ranks and micro-batches
    targets: Targets = "soft"
    label_view: LabelView = "strong"
    temperature: float = 1.0
    label_smoothing: float = 0.0  # of the teacher's supervised loss
    supervised_weight: float = 1.0
    student_label_smoothing: float = 0.0
    feedback: Feedback = field(default_factory=Feedback)
    consistency: uda.Consistency | None = None

    def without_feedback(self) -> "MetaPseudoLabels":
        """The method of the steps between two that credit the labels."""
        return replace(self, feedback=replace(self.feedback, kind="off"))

    def label(self, teacher: Logits, key: Int[Tensor, ""], item: Int[Tensor, "U"]) -> PseudoLabels:
        """The labels that the student learns, from the teacher's logits of the labelling view."""
        logits = teacher.of(self.label_view)
        return make_pseudo_labels(logits, targets=self.targets, temperature=self.temperature, key=key, item=item)

    def learn(self, student: Logits, labels: PseudoLabels) -> PseudoLabelLoss:
        """The student's loss: cross-entropy with the pseudo labels alone."""
        return pseudo_label_loss(labels, student.of("strong"), label_smoothing=self.student_label_smoothing)

    def validate(self, logits: Float[Tensor, "M K"], targets: Int[Tensor, "M"]) -> Float[Tensor, ""]:
        """V: the student's cross-entropy on the feedback's images."""
        return soft_cross_entropy(logits, targets)

    def credit(
        self, logits: Float[Tensor, "U K"], tangent: Float[Tensor, "U K"], student: PseudoLabelLoss
    ) -> Float[Tensor, "U *K"]:
        """The credit r of each class, or of the class drawn, from the student's logits and their tangent along D g'."""
        rows = feedback.exact_credit(logits, tangent, label_smoothing=self.student_label_smoothing)
        if self.feedback.kind == "per_example":
            assert student.drawn is not None
            rows = feedback.read_at_label(rows, student.drawn)
        return rows

    def teach(
        self,
        teacher: Logits,
        targets: Int[Tensor, "B"],
        student: PseudoLabelLoss,
        credit: Float[Tensor, "*shape"] | None,
        consistency_weight: Float[Tensor, ""],
    ) -> TeacherLoss:
        """Supervised loss + consistency loss + weighted feedback, one fused operation. credit: None without feedback."""
        view = teacher.of(self.label_view)
        objective = partial(
            teacher_objective,
            teacher.of("labelled"),
            targets,
            feedback=None if credit is None else self._feedback(credit, student, len(view)),
            temperature=self.temperature,
            label_smoothing=self.label_smoothing,
            supervised_weight=self.supervised_weight,
        )
        if self.consistency is None:  # one view alone: whichever was labelled
            found = objective(view)
            return TeacherLoss(found.loss, found.supervised, found.uda, found.feedback, student.coverage)
        uda = UdaSettings(consistency_weight, self.consistency.temperature, self.consistency.threshold)
        return TeacherLoss(*objective(teacher.of("strong"), teacher.of("weak"), uda=uda, label_view=self.label_view))

    @torch.no_grad()
    def gradient_squares(
        self,
        teacher: Logits,
        targets: Int[Tensor, "B"],
        student: PseudoLabelLoss,
        credit: Float[Tensor, "*shape"] | None,
    ) -> Float[Tensor, "2"]:
        """Squared norms, at the teacher's logits, of the gradients of its feedback loss and of its supervised loss.

        The feedback's is the mean over the steps of a period: at the step that credits it is `feedback.every` times larger.
        Both are zero where the teacher has no supervised loss to compare with.
        """
        if self.supervised_weight == 0:
            return teacher.of("labelled").new_zeros(2)
        supervised = supervised_square(
            teacher.of("labelled"), targets, label_smoothing=self.label_smoothing, weight=self.supervised_weight
        )
        if credit is None:
            return torch.stack([torch.zeros_like(supervised), supervised])
        view = teacher.of(self.label_view)
        rows = credit if credit.ndim else credit * (self.unlabelled / len(view))
        found = feedback_square(view, rows, student.drawn, temperature=self.temperature, weight=self.feedback.weight)
        return torch.stack([found, supervised])

    def _feedback(self, credit: Tensor, student: PseudoLabelLoss, rows: int) -> KernelFeedback:
        """The credit for the kernel. A scalar is scaled to the whole step: every rank and micro-batch shares it."""
        weight = constant(self.feedback.weight * self.feedback.every, credit)
        if self.feedback.kind == "exact":
            return ExactFeedback(credit, constant(1.0, credit), weight)
        assert student.drawn is not None, "only sampled or arg max labels have a label to credit"
        if self.feedback.kind == "per_example":
            return PerExampleFeedback(credit, student.drawn, weight)
        scaled = credit if rows == self.unlabelled else credit * (self.unlabelled / rows)
        return ScalarFeedback(scaled, student.drawn, weight)
