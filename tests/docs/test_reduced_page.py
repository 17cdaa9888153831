"""Every command of docs/reduced_mpl.md runs, in its order, shortened in steps alone."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastmpl.data.errors import DataError
from fastmpl.data.sources import fashion_mnist

ROOT = Path(__file__).parents[2]
TRAINING = "--run.steps 4 --run.evaluate_every 4 --run.checkpoint_every 4"
SHORT = {
    "fastmpl train": TRAINING,
    "fastmpl ablate": "--help",  # eight runs; tests of its own run it on digits
    "fastmpl distill": "",
    "python -m benchmarks.experiments.large_teacher": "--steps 4",
    "python -m benchmarks.experiments.biased_teacher": "--help",  # it was run whole for its record
}


def commands() -> list[str]:
    lines = (ROOT / "docs" / "reduced_mpl.md").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith(("    fastmpl ", "    python "))]


def shortened(command: str) -> list[str]:
    start = next(start for start in SHORT if command.startswith(start))
    words = shlex.split(f"{command} {SHORT[start]}")
    return [sys.executable, *(words[1:] if words[0] == "python" else ["-m", *words])]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_practical_case_runs_as_it_is_written(tmp_path: Path) -> None:
    try:
        fashion_mnist("")
    except DataError:
        pytest.skip("needs Fashion-MNIST: Debian's package dataset-fashion-mnist")
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    assert len(commands()) >= 10
    for command in commands():
        done = subprocess.run(
            shortened(command), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
    for name in ("fashion_mnist_reduced", "distillation", "calibrator", "feedback_alone", "supervised"):
        assert (tmp_path / "runs" / name / "student.safetensors").is_file()
