"""Runs the row kernels' own tests on Triton's interpreter, which is chosen when triton is imported: a process apart."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("op", ["student_objective", "teacher_objective", "soft_cross_entropy"])
def test_the_triton_kernel_passes_the_ops_tests_in_the_interpreter(op: str) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("runs from a process without TRITON_INTERPRET=1")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / f"test_{op}.py")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
