"""Changed bytes of every kind of file end in a value or in one sentence: no traceback, no hang, no large memory.

FASTMPL_FUZZ=10000 changes that many inputs a reader instead of a few.
"""

import os
import random
import resource
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmpl.errors import FastMPLError
from tests.faults.readers import READERS, Reader

EXAMPLES = int(os.environ.get("FASTMPL_FUZZ", "40"))
SECONDS = 1.0  # of this process, for one input
MEGABYTES = 500


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the readers set it, and it is put back


def read_changed(reader: Reader, folder: Path, file: Path, valid: bytes, seed: int) -> None:
    """Reads one changed input. Other exceptions than a sentence for the user are a failure."""
    file.write_bytes(reader.change(valid, random.Random(seed)))
    began = time.process_time()
    sentence = ""
    try:
        reader.read(folder)
    except FastMPLError as error:
        sentence = str(error)
    assert "\x1b" not in sentence
    assert sentence.count("\n") < 5
    assert time.process_time() - began < SECONDS, f"seed {seed} took too long"


@pytest.mark.parametrize("name", READERS)
def test_no_reader_fails_otherwise_than_by_a_sentence(name: str, tmp_path: Path) -> None:
    reader, folder = READERS[name], tmp_path / "input"
    folder.mkdir()
    file = reader.make(folder)
    valid = file.read_bytes()
    reader.read(folder)  # what is not changed is read; imports are done
    others = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path != file}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(seed=st.integers(0, 2**64))
    def check(seed: int) -> None:
        for path, content in others.items():
            if not path.exists() or path.stat().st_size != len(content) or path.read_bytes() != content:
                path.write_bytes(content)  # a reader that mends what it finds has changed it
        read_changed(reader, folder, file, valid, seed)

    check()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES
