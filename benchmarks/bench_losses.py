"""How fast are the fused losses, forward and backward, on one CPU thread?

    python -m benchmarks.bench_losses [--rounds 31]

Four ways to the same loss and logits gradients, interleaved in one process. Through autograd, as a step calls them:
`fused` (the native kernel) and `eager` (the reference). Without autograd: `bare` (the native kernel) and `compiled`
(torch.compile of loss and gradient in closed form: the best that a compiler is given). Aim: fused 2.5 times as fast as
eager, bare no slower than compiled. Memory that is freed is kept by the process, for all four alike, as a training loop's
caches would.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch._inductor.config
from torch import Tensor

from benchmarks.environment import HEAP, keep_memory
from benchmarks.records import Record, Row, Scalar, save
from fastmpl_kernels import dispatch
from fastmpl_kernels import soft_cross_entropy as cross_entropy_op
from fastmpl_kernels import student_objective as student_op
from fastmpl_kernels import teacher_objective as teacher_op
from fastmpl_kernels.rows import unit
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy
from fastmpl_kernels.student_objective import student_objective
from fastmpl_kernels.teacher_objective import ExactFeedback, Feedback, ScalarFeedback, UdaSettings, teacher_objective

SHAPES = ((16, 112, 10), (64, 448, 100), (64, 448, 1000))  # labelled, unlabelled, classes
TEMPERATURE, SMOOTHING, THRESHOLD = 0.7, 0.1, 0.02
STUDENT, TEACHER, CROSS_ENTROPY = student_op._op, teacher_op._op, cross_entropy_op._op  # below the public functions


class Case(NamedTuple):
    """One loss at one shape: three calls that each give the loss and its gradients."""

    name: str
    variants: dict[str, Callable[[], Any]]


def logits(rows: int, classes: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(rows, classes) * 3).to(dtype)


def run_autograd(backend: dispatch.Choice, loss: Callable[..., Tensor], leaves: list[Tensor]) -> Callable[[], Any]:
    def call() -> tuple[Tensor, ...]:
        with dispatch.use(backend):
            value = loss(*leaves)
            return torch.autograd.grad(value, leaves, unit(value))  # as a learner calls it

    return call


def case(
    name: str, loss: Callable[..., Tensor], bare: Callable[..., Any], closed: Callable[..., Any], inputs: list[Tensor]
) -> Case:
    """`loss` of `inputs`; and loss and gradients without autograd, by the kernel (`bare`) and by formula (`closed`)."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.compiler.reset()  # every case is a function of its own to compile, not the next recompilation of one
    compiled = torch.compile(closed, fullgraph=True, dynamic=False)
    return Case(
        name,
        {
            "fused": run_autograd("native", loss, leaves),
            "eager": run_autograd("reference", loss, leaves),
            "bare": lambda: bare(*inputs),
            "compiled": lambda: compiled(*inputs),
        },
    )


def smooth(target: Tensor) -> Tensor:
    return (1 - SMOOTHING) * target + SMOOTHING / target.shape[-1]


def cross_entropy_parts(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Row losses and p - t, in float32."""
    log_p = torch.log_softmax(x.float(), -1)
    return -(target * log_p).sum(-1), log_p.exp() - target


def student(unlabelled: int, classes: int, dtype: torch.dtype) -> Case:
    labelling = logits(unlabelled, classes, dtype)

    def loss(x: Tensor) -> Tensor:
        return student_objective(
            labelling, x, temperature=TEMPERATURE, label_smoothing=SMOOTHING, threshold=THRESHOLD
        ).loss

    def closed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = torch.softmax(labelling.float() / TEMPERATURE, -1)
        keep = (q.amax(-1) >= THRESHOLD).float()
        row, slope = cross_entropy_parts(x, smooth(q))
        return (row * keep).mean(), (slope * (keep / unlabelled).unsqueeze(-1)).to(x.dtype), labelling.argmax(-1)

    def bare(x: Tensor) -> Any:
        return STUDENT("native", labelling, x, None, None, "soft", TEMPERATURE, SMOOTHING, THRESHOLD, True)

    return case("student_objective, soft", loss, bare, closed, [logits(unlabelled, classes, dtype)])


def teacher(labelled: int, unlabelled: int, classes: int, dtype: torch.dtype, exact: bool) -> Case:
    weak, labels = logits(unlabelled, classes, dtype), torch.arange(labelled) % classes
    drawn, one = torch.arange(unlabelled) % classes, torch.tensor(1.0)
    tangent, credit = logits(unlabelled, classes, dtype), torch.tensor(0.1)
    feedback: Feedback = ExactFeedback(tangent, credit, one) if exact else ScalarFeedback(credit, drawn, one)

    def loss(x: Tensor, strong: Tensor) -> Tensor:
        uda = UdaSettings(one, 1.0, THRESHOLD)
        settings: dict[str, Any] = {"temperature": TEMPERATURE, "label_smoothing": SMOOTHING}
        return teacher_objective(x, labels, strong, weak, uda=uda, feedback=feedback, **settings).loss

    def closed(x: Tensor, strong: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        row, slope = cross_entropy_parts(x, smooth(torch.nn.functional.one_hot(labels, classes)))
        w = torch.softmax(weak.float(), -1)
        keep = (w.amax(-1) >= THRESHOLD).float()
        uda, uda_slope = cross_entropy_parts(strong, w)
        log_q = torch.log_softmax(strong.float() / TEMPERATURE, -1)
        q = log_q.exp()
        if exact:
            mean = (q * tangent).sum(-1, keepdim=True)
            value, credited = credit * mean.sum(), q * (tangent - mean) * (credit / TEMPERATURE)
        else:
            hit = torch.nn.functional.one_hot(drawn, classes)
            value, credited = -credit * (hit * log_q).sum(), (q - hit) * (credit / TEMPERATURE)
        total = row.mean() + one * (uda * keep).mean() + one * value
        strong_slope = one * uda_slope * (keep / unlabelled).unsqueeze(-1) + one * credited
        return total, (slope / labelled).to(x.dtype), strong_slope.to(strong.dtype)

    inputs = [logits(labelled, classes, dtype), logits(unlabelled, classes, dtype)]
    given = (one, one, tangent, credit, None, "exact") if exact else (one, one, None, credit, drawn, "scalar")
    rest = (*given, False, TEMPERATURE, SMOOTHING, 1.0, 1.0, THRESHOLD, [True, True, False])

    def bare(x: Tensor, strong: Tensor) -> Any:
        return TEACHER("native", x, labels, strong, weak, *rest)

    return case(f"teacher_objective, {'exact' if exact else 'scalar'}", loss, bare, closed, inputs)


def cross_entropy(rows: int, classes: int, dtype: torch.dtype) -> Case:
    labels = torch.arange(rows) % classes

    def closed(x: Tensor) -> tuple[Tensor, Tensor]:
        row, slope = cross_entropy_parts(x, smooth(torch.nn.functional.one_hot(labels, classes)))
        return row.mean(), (slope / rows).to(x.dtype)

    return case(
        "soft_cross_entropy, label",
        lambda x: soft_cross_entropy(x, labels, label_smoothing=SMOOTHING),
        lambda x: CROSS_ENTROPY("native", x, labels, SMOOTHING, True),
        closed,
        [logits(rows, classes, dtype)],
    )


def cases(among: Sequence[int]) -> Iterator[tuple[dict[str, Any], Case]]:
    """Every loss at every shape and type, with what names it in the record."""
    for labelled, unlabelled, classes in (shape for shape in SHAPES if shape[2] in among):
        for dtype in (torch.float32, torch.bfloat16):
            where = {"labelled": labelled, "unlabelled": unlabelled, "classes": classes, "dtype": str(dtype)[6:]}
            yield where, student(unlabelled, classes, dtype)
            yield where, teacher(labelled, unlabelled, classes, dtype, exact=True)
            yield where, teacher(labelled, unlabelled, classes, dtype, exact=False)
            yield where, cross_entropy(unlabelled, classes, dtype)


def check(case: Case) -> None:
    """The three ways agree, or their times mean nothing."""
    fused, eager, compiled = (case.variants[name]() for name in ("fused", "eager", "compiled"))
    for i, (a, b) in enumerate(zip(fused, eager, strict=True)):
        size = b.float().abs().max()
        for other in (a, compiled[1 + i]):
            assert (other.float() - b.float()).abs().max() <= 0.01 * size, case.name


def take_turns(variants: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of this thread a call; every round runs each variant once, in an order that rotates."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-3, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.thread_time()
            for _ in range(repeats):
                variants[name]()
            if turn >= 0:
                seconds[name].append((time.thread_time() - start) / repeats)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--classes", type=int, nargs="*", default=[shape[2] for shape in SHAPES])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1  # no workers beside what is measured
    torch.manual_seed(0)
    rows: list[Row] = []
    for where, one in cases(options.classes):
        check(one)
        seconds = take_turns(one.variants, options.rounds, repeats=max(1, 100_000 // (where["classes"] * 448)))
        median = {name: statistics.median(values) for name, values in seconds.items()}
        ratio = {
            name: statistics.median(o / f for o, f in zip(seconds[name], seconds[ours], strict=True))
            for name, ours in (("eager", "fused"), ("compiled", "bare"))
        }
        rows.append(
            {
                "loss": one.name,
                **where,
                "fused": f"{1e6 * median['fused']:.0f} us",
                "eager / fused": f"{ratio['eager']:.2f}",
                "bare": f"{1e6 * median['bare']:.0f} us",
                "compiled / bare": f"{ratio['compiled']:.2f}",
            }
        )
        line = " ".join(f"{name} {1e6 * s:.0f} us" for name, s in median.items())
        print(f"{one.name}, {where['unlabelled']} x {where['classes']} {where['dtype']}: {line}; "
              f"eager / fused {ratio['eager']:.2f}, compiled / bare {ratio['compiled']:.2f}", flush=True)  # fmt: skip
    config: dict[str, Scalar] = {"rounds": options.rounds, "threads": 1, "clock": "cpu", **HEAP}
    print(save(Record("losses", "table", rows, config)))


if __name__ == "__main__":
    keep_memory("benchmarks.bench_losses")
    main()
