"""What the kernels of teacher_objective take and return."""

from typing import NamedTuple

from torch import Tensor


class TeacherArguments(NamedTuple):
    """Logits of the three views, labels, the weights and credits that may change from step to step (0-D, or one a row), and
    the constants of one call. `feedback` is a name of native.KINDS; `with_gradient` asks for the gradient of each view."""

    labelled_logits: Tensor
    targets: Tensor
    strong_logits: Tensor
    weak_logits: Tensor | None
    uda_weight: Tensor | None
    feedback_weight: Tensor | None
    tangent: Tensor | None
    credit: Tensor | None
    drawn: Tensor | None
    feedback: str
    on_weak: bool
    temperature: float
    label_smoothing: float
    supervised_weight: float
    uda_temperature: float
    uda_threshold: float
    with_gradient: list[bool]


class TeacherResults(NamedTuple):
    """`parts` is float32 [5]: loss, supervised, uda, feedback, coverage. A gradient is empty where nobody asked for it."""

    parts: Tensor
    labelled_gradient: Tensor
    strong_gradient: Tensor
    weak_gradient: Tensor
