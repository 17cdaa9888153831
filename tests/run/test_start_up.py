"""How soon a run takes its first step: what a process imports before it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmpl.learners.optimiser_rows.eager import without_compiler

ROOT = Path(__file__).parents[2]
SLOW = ("torch._dynamo", "torch._inductor", "scipy.stats", "matplotlib")  # none is used by a step
BOUND = 12.0  # CPU seconds until the first step is taken; 3 on a quiet machine, of which torch's import is half
PROGRAM = """
import json, sys, time
import fastmpl
seen = []
def note(done):
    seen.append([done.step, time.process_time(), [name for name in {slow!r} if name in sys.modules]])
fastmpl.train("launch/configs/digits.toml", {changes!r}, quiet=True, callbacks=[fastmpl.Callback(on_step=note)])
print(json.dumps(seen))
"""


def _start(tmp_path: Path, **changes: Any) -> list[list[Any]]:
    """The number of each step, the process's CPU seconds after it, and which of SLOW are imported by then."""
    all_changes = {"run.output": str(tmp_path), "run.steps": 14, **changes}
    program = PROGRAM.format(slow=SLOW, changes=all_changes)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("optimiser", ["nesterov", "adamw"])
def test_no_step_imports_a_compiler_or_what_only_a_report_needs(tmp_path: Path, optimiser: str) -> None:
    changes = {"student.optimiser": optimiser, "student.lr": 0.01, "teacher.optimiser": optimiser, "teacher.lr": 0.01}
    steps = _start(tmp_path, **changes)
    assert len(steps) == 14  # the thirteenth is run from a tape
    assert all(imported == [] for *_, imported in steps), steps
    assert steps[0][1] < BOUND


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimiser_without_the_compiler_takes_the_same_steps(kind: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(5), torch.randn(3, 5)
    ends = []
    for build in (kind, without_compiler(kind)):
        p = start.clone().requires_grad_()
        optimiser = build([{"params": [p], "weight_decay": 0.1}], lr=0.1, fused=True)  # type: ignore[call-arg]
        for gradient in gradients:
            p.grad = gradient.clone()
            optimiser.step()
        ends.append(p.detach())
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], start)
