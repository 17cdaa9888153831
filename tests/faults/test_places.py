"""Machines and folders that lack what a run would like: it trains, or says before the first step why it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastmpl.errors import StorageError
from fastmpl.run.folder import read_status
from tests.faults.full_disk import small_disk
from tests.run.short_runs import CONFIGS, short_config, train_quietly

ROOT = Path(__file__).parents[2]


def test_an_output_that_cannot_be_written_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StorageError, match=r"cannot be written: Read-only file system.*Set run\.output"):
            train_quietly(short_config(disk))


@pytest.mark.parametrize("path", ["/dev/null/runs", "/proc/runs"])
def test_an_output_that_cannot_be_made_is_refused(path: str) -> None:
    with pytest.raises(StorageError, match=r"cannot be written: .*Set run\.output"):
        train_quietly(short_config(Path(path)))


def test_a_run_needs_no_compiler_no_home_and_no_shared_memory(tmp_path: Path) -> None:
    """PATH holds no program, HOME cannot be written, and TMPDIR is the run's own."""
    command = [sys.executable, "-m", "fastmpl", "train", str(CONFIGS / "digits.toml"), "--run.steps", "4"]
    command += ["--run.output", str(tmp_path / "runs"), "--data.batch_unlabelled", "16"]
    environment = {"PATH": "/nonexistent", "HOME": "/proc", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment |= {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
        "CXX": "/nonexistent",
        "LANG": os.environ.get("LANG", "C"),
    }
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode == 0, ended.stderr
    assert read_status(tmp_path / "runs/digits")["state"] == "done"
