"""The cost of a process, as `benchmarks.bench_start` takes it."""

import subprocess
import sys

import pytest

from benchmarks.bench_start import programs, run_once


def test_the_cost_of_a_process_is_its_own() -> None:
    little = run_once([sys.executable, "-c", "pass"])
    much = run_once([sys.executable, "-c", "import time\nx = b'x' * 10**8\nwhile time.process_time() < 0.5: pass"])
    assert little.cpu < 0.5 <= much.cpu
    assert much.peak > 1e8


def test_a_process_that_fails_is_no_measurement() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run_once([sys.executable, "-c", "raise SystemExit(3)"])


def test_each_question_is_a_program_of_its_own() -> None:
    asked = programs("somewhere")
    assert len({tuple(program) for program in asked.values()}) == len(asked)
    for program in asked.values():
        if "-c" in program:
            compile(program[-1], "question", "exec")
