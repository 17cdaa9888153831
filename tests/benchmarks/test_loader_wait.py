"""The benchmark of how long a trainer waits exchanges parts of the trainer by name; it runs, so they are there."""

import sys

import pytest

from benchmarks import bench_loader_wait


def test_it_measures_the_waits_of_a_real_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--files", "12", "--labelled", "2", "--unlabelled", "4", "--threads", "1", "--steps", "4", "--dry"]
    monkeypatch.setattr(sys, "argv", ["bench_loader_wait", *asked])
    bench_loader_wait.main()
    plain, augmented = (line.split("  ") for line in capsys.readouterr().out.splitlines()[-2:])
    assert (plain[0], augmented[0]) == ("no", "2 operations, magnitude 17")
    batch, step = (float(time.split()[0]) for time in plain[1:3])
    assert abs(step - 2 * batch) <= 1  # ms, rounded
    assert plain[3] == "3"  # steps after the first, each of which was waited for
