"""Bytes that a rank holds of one network, and that it gathers for exact feedback, by ZeRO stage.

Each stage of ZeRO (Rajbhandari et al. 2020) divides more of the state into N parts: stage 1 the moments of the optimiser
and the moving average, stage 2 also the gradients, stage 3 also the parameters. Stage 0 is a copy on each rank. The
state is float32 at every precision: bf16 exists inside autocast alone. P elements, m moments, N ranks, units of 4 P bytes:

    stage             0        1           2            3
    parameters        1        1           1            1 / N
    gradients         1        1           1 / N        1 / N
    optimiser         m        m / N       m / N        m / N
    average           1        1 / N       1 / N        1 / N

P counts the parameters that learn. A frozen one is 4 bytes on each rank and nothing else.

Not counted: buffers of the network (running statistics), the padding of the last part, and messages in flight, of at
most `BUCKET` elements each.
"""

from typing import Literal, NamedTuple

Stage = Literal[0, 1, 2, 3]
FLOAT = 4  # bytes


class StateBytes(NamedTuple):
    """Bytes of a rank, of one network or of several. `host` bytes lie in host memory, all others on the device."""

    parameters: int = 0
    gradients: int = 0
    optimiser: int = 0
    average: int = 0
    host: int = 0

    @property
    def device(self) -> int:
        """Bytes on the device while gradients exist."""
        return self.parameters + self.gradients + self.optimiser + self.average

    @property
    def lasting(self) -> int:
        """Bytes on the device between steps."""
        return self.device - self.gradients

    def plus(self, other: "StateBytes") -> "StateBytes":
        return StateBytes(*(a + b for a, b in zip(self, other, strict=True)))


def state_bytes(
    elements: int, *, stage: Stage, ranks: int, moments: int, average: bool = False, offload: bool = False
) -> StateBytes:
    """Bytes that a rank holds of a network with `elements` parameters.

    moments: optimiser tensors of the shape of a parameter (`fastmpl.config.optimisers`). offload: host memory holds the
    moments, the average, the part of the parameters that the optimiser steps, and the gradients of that part.
    """
    part = -(-elements // ranks)
    sharded = part if stage else elements
    parameters = (part if stage == 3 else elements) * FLOAT
    gradients = (part if stage >= 2 else elements) * FLOAT
    optimiser, averaged = moments * sharded * FLOAT, average * sharded * FLOAT
    if offload:
        stepped = 2 * sharded * FLOAT  # parameters and gradients beside the optimiser
        return StateBytes(parameters, gradients, host=optimiser + averaged + stepped)
    return StateBytes(parameters, gradients, optimiser, averaged)


class Gathered(NamedTuple):
    """Bytes of a rank that exact feedback needs of the student, beside its state."""

    kept: int  # from the student's update until the labels are credited: the old parameters, the gradient
    gradient: int  # g' while it is computed: whole, except at stage 3
    tangent: int  # the old parameters and their direction, which the forward-mode pass reads

    @property
    def credit(self) -> int:
        """The peak of the credit phase, beside `kept`."""
        return max(self.gradient, self.tangent)


def gathered_bytes(
    elements: int,
    *,
    stage: Stage,
    ranks: int,
    layer: int,
    exact: bool = True,
    tangent: Literal["jvp", "difference"] = "jvp",
) -> Gathered:
    """Bytes that the credit phase holds of a student with `elements` parameters, `layer` of them in its largest layer.

    exact: whether the feedback needs the gradient of the update and g'. Otherwise it is two passes without a graph, which
    need no such bytes. At stage 3 g' stays in parts and the forward-mode pass gathers one layer at a time; the difference
    form moves the parts themselves.
    """
    if not exact:
        return Gathered(0, 0, 0)
    part = -(-elements // ranks)
    sharded = part if stage else elements
    # stages 1 and 2 copy the whole gradient into one flat tensor, then sum its parts over ranks
    gradient = {0: elements, 1: 2 * elements + part, 2: 2 * elements + part, 3: 2 * part}[stage]
    if tangent == "difference":
        moved = 2 * sharded  # the direction, the moved parameters
    else:
        whole = 2 * layer if stage == 3 else elements if stage == 0 else 2 * elements
        moved = whole + 2 * sharded  # g' and the direction, and the old parameters and direction gathered whole
    return Gathered(2 * sharded * FLOAT, gradient * FLOAT, moved * FLOAT)
