"""Bytes that a rank holds of one network, and that it gathers for exact feedback, by what is sharded.

ZeRO (Rajbhandari et al. 2020) cuts one more of three into N parts at each stage: 1 the optimiser's moments and the moving
average, 2 also the gradients, 3 also the parameters. Copies (no ZeRO) hold what stage 0 holds. All of it is float32 here,
whatever the precision of the arithmetic: bf16 is autocast's. With P elements, m moments and N ranks, in units of 4 P bytes:

    stage             0        1           2            3
    parameters        1        1           1            1 / N
    gradients         1        1           1 / N        1 / N
    optimiser         m        m / N       m / N        m / N
    average           1        1 / N       1 / N        1 / N

Left out: buffers of the network (running statistics), the filling of the last part, and messages on their way, of at
most `BUCKET` elements each.
"""

from typing import Literal, NamedTuple

Stage = Literal[0, 1, 2, 3]
FLOAT = 4  # bytes


class State(NamedTuple):
    """Bytes of a rank, of one network or of several. `host` is what it keeps in the host's memory instead."""

    parameters: int = 0
    gradients: int = 0
    optimiser: int = 0
    average: int = 0
    host: int = 0

    @property
    def device(self) -> int:
        """All that is on the device; gradients while they exist."""
        return self.parameters + self.gradients + self.optimiser + self.average

    @property
    def lasting(self) -> int:
        """What is on the device between steps."""
        return self.device - self.gradients

    def plus(self, other: "State") -> "State":
        return State(*(a + b for a, b in zip(self, other, strict=True)))


def state_bytes(
    elements: int, *, stage: Stage, ranks: int, moments: int, average: bool = False, offload: bool = False
) -> State:
    """What a rank holds of a network of that many parameters.

    moments: tensors of a parameter's shape that the optimiser keeps (`fastmpl.config.optimisers`). offload: the moments,
    the average and the part of the parameters that the optimiser steps are in the host's memory, with its gradients.
    """
    part = -(-elements // ranks)
    sharded = part if stage else elements
    parameters = (part if stage == 3 else elements) * FLOAT
    gradients = (part if stage >= 2 else elements) * FLOAT
    optimiser, averaged = moments * sharded * FLOAT, average * sharded * FLOAT
    if offload:
        stepped = 2 * sharded * FLOAT  # parameters and gradients, where the optimiser is
        return State(parameters, gradients, host=optimiser + averaged + stepped)
    return State(parameters, gradients, optimiser, averaged)


class Gathered(NamedTuple):
    """What exact feedback needs beside the state, for the student. Bytes of a rank."""

    kept: int  # from the student's step to the end of the whole step: the old parameters, the gradient
    gradient: int  # g' while it is made: whole, but at stage 3
    tangent: int  # the old parameters and their direction, as the forward-mode pass reads them

    @property
    def credit(self) -> int:
        """The most at one moment of the credit phase, beside what is kept."""
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
    """What the credit phase holds of a student of that many parameters, the largest layer having `layer` of them.

    exact: whether the feedback needs the update's gradient and g' (exact, per_example, or the scalar's cosine); two
    passes without a graph otherwise, which need nothing. At stage 3 the engine leaves g' in parts and the forward-mode
    pass goes layer by layer; a difference moves the parts themselves.
    """
    if not exact:
        return Gathered(0, 0, 0)
    part = -(-elements // ranks)
    sharded = part if stage else elements
    # stages 1 and 2 lay the whole gradient out in a row, whose parts are then summed
    gradient = {0: elements, 1: 2 * elements + part, 2: 2 * elements + part, 3: 2 * part}[stage]
    if tangent == "difference":
        moved = 2 * sharded  # the direction, the moved parameters
    else:
        whole = 2 * layer if stage == 3 else elements if stage == 0 else 2 * elements
        moved = whole + 2 * sharded  # g' and the direction, and what is made whole of the old and of the direction
    return Gathered(2 * sharded * FLOAT, gradient * FLOAT, moved * FLOAT)
