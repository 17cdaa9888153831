"""launch/slurm.sh starts one torchrun a machine, and tells a run that was interrupted from one that failed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIGITS = "launch/configs/digits.toml"
SRUN = """#!/usr/bin/env bash
echo "$@" > "$SAID/srun"
echo "$OMP_NUM_THREADS" > "$SAID/threads"
mkdir -p "$SAID/runs/far"; echo '{ "state": "'$STATE'" }' > "$SAID/runs/far/STATUS.json"
exit $CODE
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "$@" > "$SAID/requeued"; fi
"""


def slurm(
    folder: Path, *options: str, state: str = "done", code: int = 0, job: bool = True
) -> subprocess.CompletedProcess[str]:
    """The script with stand-ins for Slurm's commands, which note what they were asked."""
    tools = folder / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
        "SAID": str(folder),
        "STATE": state,
        "CODE": str(code),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_ON_NODE": "96",
        **({"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node[7-8]"} if job else {}),
    }
    own = ["--run.output", str(folder / "runs"), "--run.name", "far"] if options else []
    return subprocess.run(
        ["bash", str(ROOT / "launch/slurm.sh"), *options, *own],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_machine_runs_one_torchrun_that_meets_at_the_first(tmp_path: Path) -> None:
    done = slurm(tmp_path, DIGITS)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "srun").read_text()
    assert "--nnodes 2 --nproc-per-node 8" in asked
    assert "--rdzv-endpoint node7:32345" in asked
    assert f"launch/train.py {DIGITS} --run.output {tmp_path / 'runs'} --run.name far" in asked
    assert (tmp_path / "threads").read_text().strip() == "12"
    assert not (tmp_path / "requeued").exists()


def test_an_interrupted_run_goes_back_into_the_queue(tmp_path: Path) -> None:
    assert slurm(tmp_path, DIGITS, state="interrupted", code=1).returncode == 75
    assert (tmp_path / "requeued").read_text().strip() == "requeue 12345"


def test_a_failed_run_does_not(tmp_path: Path) -> None:
    assert slurm(tmp_path, DIGITS, state="failed", code=1).returncode == 1
    assert not (tmp_path / "requeued").exists()


def test_a_mistake_in_the_configuration_asks_no_other_machine(tmp_path: Path) -> None:
    done = slurm(tmp_path, DIGITS, "--student.lr", "fast")
    assert done.returncode == 2
    assert "Config: student.lr" in done.stderr
    assert not (tmp_path / "srun").exists()


@pytest.mark.parametrize(("options", "words"), [((), "Use: sbatch"), ((DIGITS,), "is for sbatch")])
def test_it_says_how_it_is_called(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = slurm(tmp_path, *options, job=False)
    assert done.returncode == 2
    assert words in done.stderr
