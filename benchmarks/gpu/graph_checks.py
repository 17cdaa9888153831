"""A captured step is the eager one, bit for bit: every form of it, over replays, and after a state was loaded; and a step
that cannot be captured is taken eagerly."""

import os
from functools import partial
from typing import Final

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, Cases, Setting
from benchmarks.gpu.runs import FORMS, Form, capture_calls, make_batches, make_config, make_trainee, warmup_steps
from benchmarks.records import Row
from fastmpl.data.batch import Batch
from fastmpl.run.build import Trainee
from fastmpl.run.graph_choice import choose_execution
from fastmpl.step.eager import EagerStep, Watch
from fastmpl.step.step_graph import GraphedStep
from fastmpl.step.step_metrics import StepMetrics

IMITATED: Final = (  # forms that the CPU has time for; the tests of the imitation take the shipped configurations
    "exact",
    "exact, joint, dropout",
    "exact, deferred, recomputed",
    "exact, every second step",
    "exact, two micro-batches",
    "scalar",
    "per example, shuffled",
    "AdamW, clipped",
    "Nesterov, fused with the average",
    "reduced",
)
REPEATED: Final = 2  # steps that are taken again from a state that was loaded


def be_deterministic() -> None:
    """Libraries choose algorithms that give the same bits again."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def _kept(report: StepMetrics) -> StepMetrics:
    return StepMetrics(*(value.clone() for value in report))


def _differing(a: StepMetrics, b: StepMetrics) -> list[str]:
    return [name for name, x, y in zip(a._fields, a, b, strict=True) if not torch.equal(x.nan_to_num(), y.nan_to_num())]


def compare_steps(one: EagerStep | GraphedStep, other: EagerStep | GraphedStep, batches: list[Batch]) -> str:
    """Takes the same steps with both. Gives where their reports differ first, "" where they never do."""
    for number, batch in enumerate(batches):
        expected = _kept(one(batch))
        if found := _differing(expected, other(batch)):
            return f"step {number}: {', '.join(found)}"
    return ""


def _differing_state(a: Trainee, b: Trainee) -> str:
    other = b.parts().state()
    return ", ".join([name for name, value in a.parts().state().items() if not torch.equal(value, other[name])][:3])


def _copy(trainee: Trainee) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainee.parts().state().items()}


def check_form(form: Form, setting: Setting) -> Row:
    """Eager against eager, then a graph against eager, then both again from an earlier state."""
    be_deterministic()
    config = make_config(form)
    replays = 3 if setting.is_imitated else 20
    found: Row = {"replays": replays}
    with capture_calls(setting) as device:
        batches = make_batches(config, config.feedback.every * warmup_steps() + replays, device)
        first, second, third = (make_trainee(config, device) for _ in range(3))
        found["eager_against_eager"] = compare_steps(first.step, second.step, batches[:REPEATED])
        second.parts().load(_copy(third))  # which has taken no step
        graphed = GraphedStep(third.step, device)
        found["graph_against_eager"] = compare_steps(second.step, graphed, batches)
        found["state"] = _differing_state(second, third)
        start = _copy(first)
        for trainee in (second, third):
            trainee.parts().load(start)
        found["after_a_state_load"] = compare_steps(second.step, graphed, batches[:REPEATED])
        found["state_after_a_load"] = _differing_state(second, third)
    wrong = [f"{name}: {what}" for name, what in found.items() if isinstance(what, str) and what]
    return {"passed": not wrong, "why": "; ".join(wrong), "replays": replays}


def _private_bytes() -> int:
    """Bytes that the allocator holds for graphs alone."""
    segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return sum(int(each["total_size"]) for each in segments if tuple(each["segment_pool_id"]) != (0, 0))


def check_refused_capture(setting: Setting, watch: Watch = lambda report: float(report.student_loss)) -> Row:
    """A step that reads the device goes on eagerly, on the stream and in the memory from before its capture."""
    be_deterministic()
    config = make_config({})
    said: list[str] = []
    with capture_calls(setting) as device:
        before = 0 if setting.is_imitated else _private_bytes()
        batches = make_batches(config, warmup_steps() + 3, device)
        eager, refused = (make_trainee(config, device) for _ in range(2))
        refused.step.watch = watch
        step = choose_execution(refused, config, device, said.append, decodes=False)
        assert isinstance(step, GraphedStep)
        found = [
            compare_steps(eager.step, step, batches),
            _differing_state(eager, refused),
            "" if len(said) == 1 else f"{len(said)} notes",
            ""
            if torch.cuda.current_stream(device) == torch.cuda.default_stream(device)
            else "another stream is current",
        ]
        kept = 0 if setting.is_imitated else _private_bytes() - before
    wrong = [what for what in [*found, f"{kept} bytes are kept for graphs" if kept > 0 else ""] if what]
    return {"passed": not wrong, "why": "; ".join(wrong), "said": said[0] if said else ""}


def cases(setting: Setting) -> Cases:
    names = IMITATED if setting.is_imitated else tuple(FORMS)
    return [
        *(Case(name, partial(check_form, FORMS[name], setting), 60) for name in names),
        Case("a capture that is refused", partial(check_refused_capture, setting), 60),
    ]
