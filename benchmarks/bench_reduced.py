"""What a ReducedMPL step costs beside supervised training of the same network on the same images.

    python -m benchmarks.bench_reduced            bytes and arithmetic, counted on fake tensors (ResNet-50, 224 px)
    python -m benchmarks.bench_reduced --time     CPU time of real steps (ResNet-50, 112 px), interleaved

Every arm as `fastmpl train` runs it by default: fused batch norms, channels last. In time, memory that is freed is kept by
the process (benchmarks.environment.HEAP), as a training loop's caches would.
The large teacher is in neither: whatever its size, a step meets its stored rows alone, [B + U, K] floats.
"""

import argparse
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.environment import HEAP, keep_memory
from benchmarks.harness import compare
from benchmarks.records import Record, Row, Scalar, save
from benchmarks.steps import RESNET50, Size, Step
from fastmpl.analysis.accounting import Account, count_arithmetic, measure
from fastmpl.config import NetworkConfig
from fastmpl.learners.plain import PlainLearner
from fastmpl.models.reduced_teacher import ReducedTeacher

SMALL = Size("timm:resnet50", 112, 4, 28, classes=1000)  # the same network and shares, a step of seconds on a core
TEACHER = NetworkConfig(optimiser="adamw", lr=3e-3, weight_decay=0.0, warmup=0, schedule="constant")
TIMED = ("supervised", "reduced_mpl, feedback off", "reduced_mpl, exact (jvp)", "reduced_mpl, exact (difference)")
ARMS: dict[str, dict[str, Any]] = {
    "supervised": {"schedule": "supervised"},
    "reduced_mpl, feedback off": {"kind": "off"},
    "reduced_mpl, scalar": {"kind": "scalar"},
    "reduced_mpl, exact (jvp)": {"kind": "exact"},
    "reduced_mpl, exact (difference)": {"kind": "exact", "tangent": "difference"},
}


class ReducedStep(Step):
    """A step whose teacher is a small perceptron over stored rows; or the supervised step on the same images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.batch = self.batch._replace(weak=self.batch.strong)  # neither step has a second view
        if self.schedule != "supervised":
            size, classes = self.size, self.size.classes
            self.batch = self.batch._replace(
                stored_labelled=torch.softmax(torch.randn(size.labelled, classes), -1),
                stored_unlabelled=torch.softmax(torch.randn(size.unlabelled, classes), -1),
            )
            self.teacher = PlainLearner(ReducedTeacher(classes, width=128, depth=5, seed=3), TEACHER, steps=1000)
            self.method = _without_consistency(self.method)
        parts = tuple(part for part in self.batch if part is not None)
        self.held = [self.student.state(), parts]
        if self.schedule != "supervised":
            self.held.append(self.teacher.state())


def _without_consistency(method: Any) -> Any:
    return type(method)(**vars(method) | {"consistency": None})


def account(size: Size, **settings: Any) -> tuple[Account, int]:
    """Bytes and operators of the second step, and its arithmetic; nothing is computed."""
    with FakeTensorMode():
        step = ReducedStep(size, channels_last=True, **settings)
        step()
        return measure(step, *step.held), count_arithmetic(step)


def count_bytes(size: Size) -> list[Row]:
    """A row an arm, with its cost relative to the supervised step."""
    found = {arm: account(size, **settings) for arm, settings in ARMS.items()}
    one, work = found["supervised"]
    return [
        {
            "network": size.model,
            "step": arm,
            "peak": f"{each.peak_bytes / 2**30:.3f} GiB",
            "peak, of supervised": f"{each.peak_bytes / one.peak_bytes:.3f}x",
            "arithmetic, of supervised": f"{flops / work:.3f}x",
            "operators": each.operations,
        }
        for arm, (each, flops) in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", action="store_true", help="time real steps instead of counting")
    parser.add_argument("--rounds", type=int, default=6)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.time:
        keep_memory("benchmarks.bench_reduced")
        steps = {arm: ReducedStep(SMALL, channels_last=True, **ARMS[arm]) for arm in TIMED}
        held = {arm: tuple(step.held) for arm, step in steps.items()}
        record = compare(
            steps,
            rounds=asked.rounds,
            warmup=1,
            baseline="supervised",
            name="reduced_time",
            config={"network": SMALL.model, "pixels": SMALL.pixels, "labelled": 4, "unlabelled": 28, **HEAP},
            watch=held,
        )
    else:
        rows = count_bytes(RESNET50)
        for row in rows:
            print("  ".join(str(value) for value in row.values()))
        config: dict[str, Scalar] = {
            "labelled": 8,
            "unlabelled": 56,
            "pixels": 224,
            "precision": "float32",
            "tensors": "fake",
        }
        record = Record("reduced_cost", "table", rows, config)
    print(save(record))


if __name__ == "__main__":
    main()
