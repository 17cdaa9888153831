"""Marks the tests of the fault matrix `faults`, and keeps their outcomes where FASTMPL_RECORD_FAULTS is set."""

import json
import os
from collections.abc import Iterable

import pytest

from tests.faults.matrix import OUTCOMES, in_matrix

_outcomes: dict[str, list[int]] = {}  # passed, failed, skipped, by test


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    for item in items:
        if in_matrix(item.nodeid):
            item.add_marker(pytest.mark.faults)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    ended = report.when == "call" or report.outcome != "passed"  # a fixture that skips or fails has no call
    if ended and in_matrix(report.nodeid):
        counts = _outcomes.setdefault(report.nodeid.partition("[")[0].removeprefix("tests/"), [0, 0, 0])
        counts[("passed", "failed", "skipped").index(report.outcome)] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    is_worker = hasattr(session.config, "workerinput")  # of pytest-xdist, whose controller gets all reports
    if os.environ.get("FASTMPL_RECORD_FAULTS") and not is_worker:
        known = json.loads(OUTCOMES.read_text()) if OUTCOMES.is_file() else {}
        OUTCOMES.write_text(json.dumps(dict(sorted((known | _outcomes).items())), indent=1) + "\n")
