"""What a first GPU machine is asked: `python -m benchmarks.gpu_check` (`make gpu-check`).

Runs every test under the `gpu` marker, compares each kernel with its reference in float64 and in time, times a step
captured against the same step eager, and writes it all to benchmarks/results/gpu_check.json. Exit code 0 if all tests
passed and every kernel is as near to float64 as its reference, 1 if not, 3 where there is no GPU.
"""

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from benchmarks.environment import ROOT
from benchmarks.harness import sample
from benchmarks.records import RESULTS, Record, Row, save
from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import batch_norm_act
from fastmpl_kernels.sgd_ema import global_norm, sgd_ema
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy
from fastmpl_kernels.student_objective import student_objective
from fastmpl_kernels.teacher_objective import ExactFeedback, Uda, teacher_objective

Call = Callable[..., list[Tensor]]


class Kernel(NamedTuple):
    """An operation: `call` of `inputs`, whatever their float type, gives every result that it has."""

    name: str
    call: Call
    inputs: list[Tensor]


def _through_backward(loss: Callable[..., Tensor]) -> Call:
    def call(*inputs: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value, leaves, torch.ones_like(value))]

    return call


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return batch_norm_act(x, weight, bias, activation="leaky_relu", slope=0.1)


@torch.no_grad()
def _norm_tangent(x: Tensor, weight: Tensor, bias: Tensor, v: Tensor) -> list[Tensor]:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, v)  # type: ignore[no-untyped-call]
        y = forward_ad.unpack_dual(_norm(dual, weight, bias))  # type: ignore[no-untyped-call]
        return [y.primal, y.tangent]


def _update(parameter: Tensor, gradient: Tensor, momentum: Tensor, average: Tensor) -> list[Tensor]:
    held = [value.clone() for value in (parameter, gradient, momentum, average)]
    lr = torch.full((), 0.1, device=parameter.device, dtype=parameter.dtype)
    p, g, m, a = ([value] for value in held)
    sgd_ema(p, g, m, a, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True, decay=0.99)
    return [*p, *m, *a]


def kernels(device: torch.device, dtype: torch.dtype, *, rows: int, classes: int, channels: int) -> Iterator[Kernel]:
    """Every operation on inputs of that type: `rows` images with `classes`, feature maps of `channels`."""
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape).to(device, dtype)

    labels = torch.arange(rows, device=device) % classes
    maps = [normal(rows, channels, 16, 16).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    scale = [normal(channels), normal(channels)]
    yield Kernel("batch_norm_act, forward and backward", _through_backward(_norm), [maps[0], *scale])
    yield Kernel("batch_norm_act, forward mode", _norm_tangent, [maps[0], *scale, maps[1]])
    label, student, weak, strong, tangent = (normal(rows, classes) for _ in range(5))

    def taught(x: Tensor, u: Tensor, w: Tensor, r: Tensor) -> Tensor:
        one = torch.ones((), device=device)
        feedback, uda = ExactFeedback(r.detach(), one, one), Uda(one, 1.0, 0.02)
        return teacher_objective(x, labels, u, w.detach(), uda=uda, feedback=feedback).loss + 0 * (w.sum() + r.sum())

    def learnt(q: Tensor, x: Tensor) -> Tensor:
        return student_objective(q.detach(), x, temperature=0.7, label_smoothing=0.1).loss + 0 * q.sum()

    yield Kernel("student_objective", _through_backward(learnt), [label, student])
    yield Kernel("teacher_objective", _through_backward(taught), [student, strong, weak, tangent])
    yield Kernel("soft_cross_entropy", _through_backward(lambda x: soft_cross_entropy(x, labels)), [student])
    if dtype == torch.float32:
        parameters = [normal(channels, channels, 3, 3) for _ in range(4)]
        yield Kernel("sgd_ema", _update, parameters)
        yield Kernel("global_norm", lambda *g: [global_norm(list(g))], parameters)


def _error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest error of any result, relative to that result's largest value."""
    return max(
        float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in zip(found, exact, strict=True)
    )


def kernel_rows(device: torch.device, backend: dispatch.Choice, *, rounds: int, **sizes: int) -> Iterator[Row]:
    """One row an operation and type: its error and time beside the reference's."""
    for dtype in (torch.float32, torch.bfloat16):
        for kernel in kernels(device, dtype, **sizes):

            def on(choice: dispatch.Choice, kernel: Kernel = kernel) -> Callable[[], list[Tensor]]:
                def call() -> list[Tensor]:
                    with dispatch.use(choice):
                        return kernel.call(*kernel.inputs)

                return call

            exact = kernel.call(*(x.double() for x in kernel.inputs))
            ours, reference = (_error(on(choice)(), exact) for choice in (backend, "reference"))
            times = sample({"ours": on(backend), "reference": on("reference")}, rounds, warmup=2)
            mine, theirs = (sorted(s.wall for s in times[name])[rounds // 2] for name in ("ours", "reference"))
            yield {
                "part": "kernel",
                "what": kernel.name,
                "dtype": str(dtype).removeprefix("torch."),
                "passed": ours <= 2 * reference + (1e-5 if dtype == torch.float32 else 1e-2),
                "error": ours,
                "reference's error": reference,
                "ms": 1e3 * mine,
                "reference's ms": 1e3 * theirs,
                "speed": theirs / mine,
            }


def step_rows(device: torch.device, rounds: int) -> Iterator[Row]:
    """A whole step, captured and eager."""
    from benchmarks.steps import graph_pairs

    for what, eager, graphed in graph_pairs(device):
        times = sample({"eager": eager, "graphed": graphed}, rounds, warmup=15)
        mine, theirs = (sorted(s.wall for s in times[name])[rounds // 2] for name in ("graphed", "eager"))
        yield {"part": "step", "what": what, "passed": True, "ms": 1e3 * mine, "reference's ms": 1e3 * theirs,
               "speed": theirs / mine}  # fmt: skip


def test_rows() -> Iterator[Row]:
    """One row a test under the `gpu` marker."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", "gpu", "tests/gpu", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False)
        cases = list(ET.parse(report).iter("testcase"))
    for case in cases:
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        why = (bad[0].get("message") or bad[0].tag).splitlines()[0] if bad else ""
        yield {"part": "test", "what": case.get("name"), "passed": not bad, "seconds": float(case.get("time") or 0),
               "why": why}  # fmt: skip


def main(arguments: list[str] | None = None, folder: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args(arguments).rounds
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA device, and torch finds none here: run it on a machine with an NVIDIA GPU.")
        return 3
    device = torch.device("cuda")
    rows = [
        *test_rows(),
        *kernel_rows(device, "triton", rounds=rounds, rows=448, classes=1000, channels=128),
        *step_rows(device, rounds),
    ]
    print(save(Record("gpu_check", "table", rows, {"rounds": rounds}), folder))
    failed = [row for row in rows if not row["passed"]]
    for row in failed:
        print("failed:", *row.values())
    print(f"{len(rows) - len(failed)} of {len(rows)} passed on {torch.cuda.get_device_name()}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
