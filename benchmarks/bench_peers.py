"""The step beside what people use: `python -m benchmarks.bench_peers`.

WRN-28-2 at 32 px, B = 16, U = 112 (`--size half`: half of both), one thread, all variants interleaved in one process. The
public PyTorch implementation's step as published (float32, NCHW); the same granted channels-last and, where the CPU
computes in bf16, bf16; that under torch.compile (`--compiled`, minutes more); this project's step by schedule and feedback;
and exact feedback by double backward, by higher, torchopt and betty (benchmarks/peers.py). A library that is not installed
is left out.

A variant's share of convolutions is that of the profiler's CPU time. The error is the sine of the angle between the
feedback's gradient by the teacher's weights and that of double backward in float64; betty's has another length too, as it
leaves the learning rate out.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.bench_step import LARGE, run_on, unfuse
from benchmarks.environment import keep_memory
from benchmarks.harness import compare
from benchmarks.peers import (
    DoubleBackwardStep,
    betty_gradient,
    make_betty_engine,
    make_higher_update,
    make_torchopt_update,
    make_update,
)
from benchmarks.records import save
from benchmarks.steps import CPU, WRN, Size, Step
from fastmpl.learners.arithmetic import Precision, computes_bf16
from fastmpl.methods.mpl import MetaPseudoLabels, TeacherLoss

SMALL = Size("wrn_28_2", 32, 4, 12)  # of the errors: double backward in float64 takes a minute at the full size
SIZES = {"small": SMALL, "half": WRN, "full": LARGE}
PUBLISHED = "published, as it is"
GRANTED = "published, granted layout and precision"
COMPILED = "the same, compiled"
JVP, DIFFERENCE = "exact, jvp", "exact, difference"
DOUBLE, BETTY = "exact by double backward", "feedback by betty"
UPDATES = {DOUBLE: make_update, "exact by higher": make_higher_update, "exact by torchopt": make_torchopt_update}
Call = Callable[[], object]


def make_calls(size: Size, precision: Precision) -> dict[str, tuple[Call, tuple[object, ...]]]:
    """By variant: a call of its step, and what the step holds."""
    ours = partial(Step, size, precision=precision, channels_last=True)
    public = partial(Step, size, schedule="published", prepare=unfuse)
    granted = partial(public, precision=precision, channels_last=True)
    made: dict[str, Step] = {
        PUBLISHED: public(),
        GRANTED: granted(),
        COMPILED: granted(compiler="inductor"),
        "scalar": ours(),
        "scalar, deferred": ours(deferred=True),
        DIFFERENCE: ours(kind="exact", tangent="difference"),
        JVP: ours(kind="exact"),
        "off": ours(kind="off"),
    }
    public_ones = (PUBLISHED, GRANTED, COMPILED)
    calls: dict[str, tuple[Call, tuple[object, ...]]] = {
        name: (run_on("reference" if name in public_ones else "auto", step), tuple(step.held))
        for name, step in made.items()
    }
    for name, make in UPDATES.items():
        with left_out(name):
            peer = DoubleBackwardStep(size, unfuse, precision, make_update=make)
            calls[name] = (peer, peer.held)
    with left_out(BETTY):
        peer = DoubleBackwardStep(size, unfuse)
        calls[BETTY] = (make_betty_engine(peer).train_step, peer.held)
    return calls


@contextmanager
def left_out(name: str) -> Iterator[None]:
    """Says that a variant is left out where its library is not installed."""
    try:
        yield
    except ImportError as error:
        print(f"{name}: left out, as {error.name} is not installed")


def share_of_convolutions(call: Call) -> float:
    """Of the CPU time of one call, by the profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return float(sum(time for name, time in times.items() if "conv" in name.lower()) / sum(times.values()))


def feedback_by_logits(size: Size, tangent: Literal["jvp", "difference"]) -> Tensor:
    """The feedback's gradient by the teacher's logits [U, K] in this project's step."""
    torch.manual_seed(0)
    step = Step(size, kind="exact", tangent=tangent, channels_last=True)
    found: list[Tensor] = []

    class Noting(MetaPseudoLabels):
        def teach(self, teacher: Any, targets: Any, student: Any, credit: Any, consistency_weight: Any) -> TeacherLoss:
            q = teacher.of(self.label_view).detach().softmax(-1)
            found.append(q * (credit - (q * credit).sum(-1, keepdim=True)))
            return super().teach(teacher, targets, student, credit, consistency_weight)

    step.method = Noting(**{field.name: getattr(step.method, field.name) for field in fields(step.method)})
    step()
    return found[0]


def errors(size: Size) -> dict[str, float]:
    """By variant: how far the direction of the feedback's gradient by the teacher's weights is off, in float32."""

    def peer(dtype: torch.dtype = torch.float32, make: Callable[..., Any] = make_update) -> DoubleBackwardStep:
        torch.manual_seed(0)
        return DoubleBackwardStep(size, unfuse, dtype=dtype, make_update=make)

    judge = peer(torch.float64)
    exact = judge.by_weights(judge.feedback_by_logits())
    found = {
        JVP: judge.by_weights(feedback_by_logits(size, "jvp")),
        DIFFERENCE: judge.by_weights(feedback_by_logits(size, "difference")),
    }
    for name, make in UPDATES.items():
        with suppress(ImportError):
            found[name] = judge.by_weights(peer(make=make).feedback_by_logits())
    with suppress(ImportError):
        found[BETTY] = betty_gradient(peer())
    return {name: sine(gradient.double(), exact) for name, gradient in found.items()}


def sine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two vectors."""
    along = a @ b / (b @ b)
    return float((a - along * b).norm() / a.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help="those alone; the first is the baseline")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="bf16" if computes_bf16(CPU) else "float32")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument(
        "--compiled", action="store_true", help="with torch.compile's variant, which takes minutes more"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    size = SIZES[asked.size]
    calls = make_calls(size, asked.precision)
    calls = {name: calls[name] for name in asked.variants or calls if name != COMPILED or asked.compiled}
    record = compare(
        {name: call for name, (call, _) in calls.items()},
        rounds=asked.rounds,
        warmup=1,
        baseline=next(iter(calls)),
        name="peers",
        config={"B": size.labelled, "U": size.unlabelled, "pixels": size.pixels, "precision": asked.precision},
        watch={name: held for name, (_, held) in calls.items()},
        uncounted={COMPILED},
    )
    wrong = errors(SMALL)
    for row in record.rows:
        name = str(row["variant"])
        row["convolutions"] = share_of_convolutions(calls[name][0])
        row["error"] = wrong.get(name)
        print({key: value for key, value in row.items() if key != "samples"}, flush=True)
    if asked.size != "small" and not asked.variants:
        print(save(record))


if __name__ == "__main__":
    keep_memory("benchmarks.bench_peers")
    main()
