"""Runs the numerics tests on the Triton kernels, in Triton's interpreter.

Triton chooses its interpreter when it is imported, so each run is a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SLOW = pytest.mark.slow
FILES = [
    "test_add_batch_norm_act.py",
    "test_batch_norm_act.py",
    "test_sgd_ema.py",
    pytest.param("test_student_objective.py", marks=SLOW),
    pytest.param("test_teacher_objective.py", marks=SLOW),
    pytest.param("test_soft_cross_entropy.py", marks=SLOW),
]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="starts the interpreter: unset TRITON_INTERPRET")
@pytest.mark.parametrize("file", FILES)
def test_triton_kernels_pass_in_the_interpreter(file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / file)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
