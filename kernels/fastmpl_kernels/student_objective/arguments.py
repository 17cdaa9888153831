"""What the kernels of student_objective take and return."""

from typing import NamedTuple

from torch import Tensor


class StudentArguments(NamedTuple):
    """Logits `[U, K]` of the network that labels and of the student, the key and the images' numbers for sampled labels,
    and the constants of one call. `targets` is a name of native.TARGETS."""

    label_logits: Tensor
    student_logits: Tensor
    key: Tensor | None
    image: Tensor | None
    targets: str
    temperature: float
    label_smoothing: float
    threshold: float
    with_gradient: bool


class StudentResults(NamedTuple):
    """`parts` is float32 [3]: loss, confidence, coverage. `gradient` is empty where nobody asked for it."""

    parts: Tensor
    label: Tensor
    mask: Tensor
    gradient: Tensor
