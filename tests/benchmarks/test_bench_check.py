"""The ratios of the records hold on this machine, within wide bounds."""

import subprocess
import sys
from pathlib import Path

from benchmarks.bench_check import FLOOR, Ratio

ROOT = Path(__file__).parents[2]


def test_the_ratios_of_the_records_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("in the record") == 7


def test_a_ratio_below_its_floor_is_lost() -> None:
    assert Ratio("a", 2.0, 2.0 * FLOOR).holds
    assert not Ratio("a", 2.0, 2.0 * FLOOR - 0.01).holds
    assert "below 0.6 of it" in str(Ratio("a", 2.0, 1.0))
