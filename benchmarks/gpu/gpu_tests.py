"""The tests under the marker `gpu`, a row each."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.environment import ROOT
from benchmarks.gpu.cases import Case, Cases, MissingError, Setting
from benchmarks.records import Row

FOLDER: Final = "tests/gpu"
SECONDS: Final = 100.0


def collect(setting: Setting) -> list[str]:
    """The files of tests; none where the tests do not lie beside this package."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / FOLDER).glob("test_*.py"))


def run_file(path: str, setting: Setting) -> Row:
    """One file in a pytest of its own; the row names the tests that failed."""
    import pytest  # noqa: F401  # its absence is this row's word

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", path]
        done = subprocess.run(
            [*command, f"--junitxml={report}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS - 5,
            check=False,
        )
        print(done.stdout[-4000:], done.stderr[-2000:])
        if not report.is_file():
            return {"passed": False, "why": f"pytest ended with {done.returncode}"}
        found = list(ET.parse(report).iter("testcase"))
    bad = [case.get("name") or "" for case in found if any(c.tag in ("failure", "error") for c in case)]
    skipped = sum(any(child.tag == "skipped" for child in case) for case in found)
    if found and skipped == len(found):
        raise MissingError(f"all {skipped} tests were skipped: they need a CUDA device")
    return {"passed": not bad and bool(found), "why": "; ".join(bad[:5]), "tests": len(found), "skipped": skipped}


def cases(setting: Setting) -> Cases:
    def refuse() -> Row:
        raise MissingError(f"{FOLDER} does not lie beside this package")

    files = collect(setting)
    return [Case(path, partial(run_file, path, setting), SECONDS) for path in files] or [Case(FOLDER, refuse)]
