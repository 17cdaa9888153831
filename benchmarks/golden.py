"""The golden curve: the losses of a short run that a change which is not meant to move numbers leaves where they are.

    python -m benchmarks.golden     makes it anew: in the commit that means to move it, with the reason

Twelve steps of Meta Pseudo Labels with exact feedback, a wide residual net at 8 px, channels-last; in float32, and with
bf16 autocast. With the fused operations and with torch's it is the same within rounding (tests/benchmarks/test_golden.py).
"""

import json
from pathlib import Path
from typing import Literal

import torch

from benchmarks.bench_step import unfuse
from benchmarks.steps import Size, Step
from fastmpl.step.step_metrics import StepMetrics
from fastmpl_kernels import dispatch

PATH = Path(__file__).parent / "golden.json"
STEPS = 12
SIZE = Size("wrn_10_1", 8, 8, 24)
Precision = Literal["float32", "bf16"]
# In bf16 one rounding decides whether an image is confident enough to learn from, and moves what depends on that.
LOSSES: dict[Precision, tuple[str, ...]] = {
    "float32": ("student_loss", "supervised_loss", "pseudo_loss", "feedback", "student_norm", "teacher_norm"),
    "bf16": ("student_loss", "supervised_loss"),
}
# Of a curve's largest value: 20 times what was seen between the two forms, and one rounding to bf16.
WITHIN: dict[Precision, float] = {"float32": 1e-5, "bf16": 2**-8}
Curve = dict[str, list[float]]  # by loss, a value a step


def compute_curve(precision: Precision, fused: bool = True) -> Curve:
    """The run's losses; without `fused`, by torch's operations alone."""
    with torch.random.fork_rng(), dispatch.use("auto" if fused else "reference"):
        torch.manual_seed(0)  # of the pictures
        step = Step(SIZE, kind="exact", precision=precision, channels_last=True, prepare=None if fused else unfuse)
        found: Curve = {name: [] for name in LOSSES[precision]}
        for _ in range(STEPS):
            report = step()
            assert isinstance(report, StepMetrics)
            for name in found:
                found[name].append(float(getattr(report, name)))
            step.step += 1
    return found


def load_golden() -> dict[str, Curve]:
    """The committed curves, by precision."""
    found: dict[str, Curve] = json.loads(PATH.read_text())
    return found


def distance(found: Curve, expected: Curve) -> dict[str, float]:
    """How far each curve is from the expected one, of its largest value."""
    return {
        name: max(abs(a - b) for a, b in zip(found[name], values, strict=True)) / max(map(abs, values))
        for name, values in expected.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    rounded = {
        precision: {
            name: [float(f"{value:.7g}") for value in values] for name, values in compute_curve(precision).items()
        }
        for precision in LOSSES
    }
    PATH.write_text(json.dumps(rounded, indent=1) + "\n")
    print(PATH)


if __name__ == "__main__":
    main()
