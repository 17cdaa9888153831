"""Executes the step on a CPU from a tape: its operators are noted, tried out, and run again from then on.

Everything that varies from step to step (rates, ramps, keys, the number of the step) is a tensor, as a CUDA graph needs
too. The tape and eager execution share the state, so each step may be of either kind: a batch of another shape is eager.
"""

from collections.abc import Mapping

from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.step.eager import EagerStep
from fastmpl.step.step_graph import WARMUP, GiveUp
from fastmpl.step.step_keys import StepMetrics
from fastmpl.step.tape import find_difference, record, try_out
from fastmpl.step.tape_program import Program, compile_tape

_Form = tuple[object, ...]


class TapedStep:
    """A drop-in for the EagerStep `eager`, whose state it shares. The first WARMUP steps are eager, as before a capture.

    The next step is noted twice without effect, and then taken eagerly: both tapes must be the same, and running one must
    give what the step gives. A step that cannot be repeated so stays eager; `give_up` is called once with the reason.
    """

    def __init__(self, eager: EagerStep, *, give_up: GiveUp) -> None:
        self.eager, self._give_up = eager, give_up
        self._taken = 0
        self._tries = True
        self._form: _Form = ()  # of the batches that the tape is for
        self._program: Program | None = None

    def __call__(self, batch: Batch) -> StepMetrics:
        self._taken += 1
        form = _form_of(batch)
        if self._program is not None and form == self._form:
            return StepMetrics(*self._program(*(part for part in batch if part is not None)))
        if self._tries and self._taken > WARMUP:
            return self._record(batch, form)
        return self.eager(batch)

    def _record(self, batch: Batch, form: _Form) -> StepMetrics:
        """One eager step, for which a tape is made and compared; the tape serves from the next step on."""
        present = [name for name, part in batch._asdict().items() if part is not None]
        empty = Batch(*(None,) * len(Batch._fields))  # type: ignore[arg-type]

        def take(*parts: Tensor) -> StepMetrics:
            return self.eager(empty._replace(**dict(zip(present, parts, strict=True))))

        parts = [part for part in batch if part is not None]
        first, second = (record(take, *parts) for _ in range(2))
        self._tries = False
        if reason := first.refusal or second.refusal or find_difference(first, second):
            self._give_up(reason)
            return self.eager(batch)
        program = compile_tape(second)
        metrics: StepMetrics
        metrics, is_equal = try_out(second, program, take, *parts)
        if is_equal:
            self._program, self._form = program, form
        else:
            self._give_up("torch computes otherwise while its operators are noted")
        return metrics

    @property
    def step(self) -> Tensor:
        return self.eager.step

    def state(self) -> dict[str, Tensor]:
        return self.eager.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Loads in place: the tape works on the same tensors."""
        self.eager.load(state)


def _form_of(batch: Batch) -> _Form:
    return tuple(None if part is None else (part.shape, part.stride(), part.dtype) for part in batch)
