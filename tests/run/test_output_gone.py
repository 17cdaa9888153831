"""A run goes on without the reader, the disk or the terminal of its output, and a hang-up saves it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from fastmpl.run import checkpoint
from fastmpl.run.folder import read_status
from tests.run.short_runs import CONFIGS

SECONDS = 120  # for what takes 10 on a quiet machine


def start(folder: Path, out: int | IO[bytes], *options: str, shell: str = "") -> subprocess.Popen[bytes]:
    """`fastmpl train launch/configs/digits.toml` with a short run in `folder`/gone."""
    command = [sys.executable, "-m", "fastmpl", "train", str(CONFIGS / "digits.toml"), "--run.output", str(folder)]
    small = ["--run.name", "gone", "--run.steps", "30", "--run.evaluate_every", "10", "--run.log_every", "5"]
    command += [*small, "--data.batch_unlabelled", "32", *options]
    if shell:
        command = ["bash", "-c", f'exec "$@" {shell}', "bash", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, env=environment)


def assert_finished(process: subprocess.Popen[bytes], folder: Path) -> None:
    _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors.decode()) == (0, "")
    assert read_status(folder / "gone")["state"] == "done"
    assert (folder / "gone/student.safetensors").is_file()


def test_a_run_goes_on_when_the_reader_of_its_output_ends(tmp_path: Path) -> None:
    process = start(tmp_path, subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert_finished(process, tmp_path)


def test_a_run_goes_on_when_the_disk_of_its_log_is_full(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        assert_finished(start(tmp_path, full), tmp_path)


def test_a_run_goes_on_without_standard_output(tmp_path: Path) -> None:
    assert_finished(start(tmp_path, subprocess.PIPE, shell=">&-"), tmp_path)


@pytest.mark.parametrize("level", [None, "INFO"], ids=["by default", "if asked for"])
def test_a_lost_store_prints_no_stacks_of_c10_unless_they_are_asked_for(level: str | None) -> None:
    program = (
        "from fastmpl.cli.endings import open_terminal\nopen_terminal()\n"
        "from datetime import timedelta\nfrom torch.distributed import TCPStore\n"
        "server = TCPStore('127.0.0.1', 0, 2, True, timedelta(seconds=5), wait_for_workers=False)\n"
        "client = TCPStore('127.0.0.1', server.port, 2, False, timedelta(seconds=5))\ndel server\n"
        "try:\n    client.get('never set')\nexcept RuntimeError:\n    pass"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"}
    environment |= {} if level is None else {"TORCH_CPP_LOG_LEVEL": level}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ("c10d" in ended.stderr) == (level is not None)


@contextmanager
def kill_at_end(process: subprocess.Popen[bytes]):  # type: ignore[no-untyped-def]
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("ignored", [False, True], ids=["hang-up", "nohup"])
def test_a_hang_up_saves_the_run_unless_it_is_ignored(ignored: bool, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)  # the child inherits it
    try:
        process = start(tmp_path, subprocess.DEVNULL, "--run.steps", "100000", "--run.evaluate_every", "100000")
    finally:
        signal.signal(signal.SIGHUP, before)
    with kill_at_end(process):
        until = time.monotonic() + SECONDS
        while not (tmp_path / "gone/metrics.jsonl").exists() or not (tmp_path / "gone/metrics.jsonl").stat().st_size:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGHUP)
        if ignored:
            time.sleep(2)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=SECONDS)
    status = read_status(tmp_path / "gone")
    assert (process.returncode, status["state"]) == (75, "interrupted")
    assert ("SIGTERM" if ignored else "SIGHUP") in errors.decode()
    assert checkpoint.steps(tmp_path / "gone/checkpoints")[0] == status["step"]
