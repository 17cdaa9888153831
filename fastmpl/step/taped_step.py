"""Executes the step on a CPU from a tape: its operators are recorded, tried out, and run again from then on.

Everything that varies from step to step (rates, ramps, keys, the number of the step) is a tensor, as a CUDA graph needs
too. The tape and eager execution read and write the same tensors, so each step may be of either kind: a batch of another
shape is eager, and a state that is loaded in place is the tape's too.
"""

from collections import Counter
from typing import NamedTuple

from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.step.eager import EagerStep
from fastmpl.step.step_graph import WARMUP, GiveUp
from fastmpl.step.step_metrics import StepMetrics
from fastmpl.step.tape import find_difference, record, try_out
from fastmpl.step.tape_program import Program, compile_tape

_Form = tuple[object, ...]


class _Taped(NamedTuple):
    form: _Form  # of the batches that the tape is for
    program: Program


class TapedStep:
    """Called like the EagerStep `eager`, which holds the state. The first WARMUP steps are eager, as before a capture.

    The step after them is recorded twice without effect, and then taken eagerly: both tapes must be the same, and running
    one must give what the step gives. A step that cannot be repeated so stays eager; `give_up` is called once with the
    reason. Both kinds of steps (`EagerStep.is_between`) have a tape and WARMUP eager steps of their own.
    """

    def __init__(self, eager: EagerStep, *, give_up: GiveUp) -> None:
        self.eager, self._give_up = eager, give_up
        self._tries = True
        self._taken: Counter[bool] = Counter()  # steps, by `is_between`
        self._tapes: dict[bool, _Taped] = {}  # by `is_between`

    def __call__(self, batch: Batch) -> StepMetrics:
        metrics = self._take(batch)
        self.eager.taken += 1
        return metrics

    def _take(self, batch: Batch) -> StepMetrics:
        between, form = self.eager.is_between, _form_of(batch)
        self._taken[between] += 1
        tape = self._tapes.get(between)
        if tape is not None and form == tape.form:
            return StepMetrics(*tape.program(*(part for part in batch if part is not None)))
        if tape is None and self._tries and self._taken[between] > WARMUP:
            return self._record(batch, form)
        return self.eager.execute(batch)

    def _record(self, batch: Batch, form: _Form) -> StepMetrics:
        """One eager step, for which a tape is made and compared; the tape serves from the next step on."""
        present = [name for name, part in batch._asdict().items() if part is not None]
        empty = Batch(*(None,) * len(Batch._fields))  # type: ignore[arg-type]

        def take(*parts: Tensor) -> StepMetrics:
            return self.eager.execute(empty._replace(**dict(zip(present, parts, strict=True))))

        parts = [part for part in batch if part is not None]
        first, second = (record(take, *parts) for _ in range(2))
        if reason := first.refusal or second.refusal or find_difference(first, second):
            self._stop_trying(reason)
            return self.eager.execute(batch)
        program = compile_tape(second)
        metrics: StepMetrics
        metrics, is_equal = try_out(second, program, take, *parts)
        if is_equal:
            self._tapes[self.eager.is_between] = _Taped(form, program)
        else:
            self._stop_trying("torch computes other numbers while its operators are recorded")
        return metrics

    def _stop_trying(self, reason: str) -> None:
        self._tries = False
        self._give_up(reason)


def _form_of(batch: Batch) -> _Form:
    return tuple(None if part is None else (part.shape, part.stride(), part.dtype) for part in batch)
