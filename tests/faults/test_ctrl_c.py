"""Ctrl-C in a terminal: once saves and ends with 130, twice ends at once and leaves the terminal as it was."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastmpl.run import checkpoint
from fastmpl.run.folder import read_status
from tests.run.short_runs import CONFIGS

SECONDS = 150
HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"


def read_until(terminal: int, process: subprocess.Popen[bytes], word: bytes, seen: bytes = b"") -> bytes:
    """What the terminal shows until `word`, or until the process has ended where `word` is empty."""
    until = time.monotonic() + SECONDS
    while not word or word not in seen:
        assert time.monotonic() < until, seen
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                found = os.read(terminal, 65536)
            except OSError:  # the other side is closed
                break
            seen += found
        elif process.poll() is not None:
            break
    return seen


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(times: int, tmp_path: Path) -> None:
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "fastmpl", "train", str(CONFIGS / "digits.toml"), "--run.output", str(tmp_path)]
    # a step takes so long that the second key comes before its end
    slow = ["--run.steps", "100000", "--run.evaluate_every", "100000", "--run.name", "key"]
    slow += ["--student.width", "128", "--teacher.width", "128", "--data.batch_unlabelled", "512"] if times == 2 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        [*command, *slow], stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    os.close(its)
    try:
        seen = read_until(ours, process, HIDE)  # the live block is there, so the run has begun
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        if times == 2:
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
        seen = read_until(ours, process, b"", seen)
        assert process.wait(SECONDS) == 130
    finally:
        process.kill()
        os.close(ours)
    assert seen.rindex(SHOW) > seen.rindex(HIDE)
    if times == 1:
        status = read_status(tmp_path / "key")
        assert (status["state"], status["code"]) == ("interrupted", 130)
        assert checkpoint.steps(tmp_path / "key/checkpoints")[0] == status["step"]
