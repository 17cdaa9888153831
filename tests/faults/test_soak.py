"""Runs among drawn faults; `python -m tests.faults.soak --count 100` is the long form."""

from pathlib import Path

import pytest

from tests.faults.soak import FAULTS, soak


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("ranks", "count"), [(1, 12), (2, 4)])
def test_runs_among_faults_end_as_the_undisturbed_one(ranks: int, count: int, tmp_path: Path) -> None:
    assert soak(count, 1, ranks, list(FAULTS) if ranks == 1 else ["kill", "TERM"], tmp_path) == []
