"""The native library loads, refuses other sources, and runs on torch's threads."""

import ctypes
import logging
import os
from pathlib import Path

import pytest
import torch

from fastmpl_kernels import dispatch, library

native = pytest.mark.skipif(
    bool(os.environ.get("FASTMPL_NO_NATIVE")), reason="FASTMPL_NO_NATIVE is set: unset it and build with a C++ compiler"
)


@native
def test_native_library_is_built_and_loaded() -> None:
    assert library.available(), "no native library: `pip install .` with a C++ compiler, or set FASTMPL_NATIVE_LIBRARY"


@native
def test_native_loops_run_on_the_threads_of_torch() -> None:
    loaded = library.library()
    assert loaded is not None
    largest_piece = loaded.fastmpl_largest_piece
    largest_piece.argtypes, largest_piece.restype = [ctypes.c_int64], ctypes.c_int64
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert largest_piece(100) == 50
        torch.set_num_threads(1)
        assert largest_piece(100) == 100
    finally:
        torch.set_num_threads(before)


def test_missing_library_is_said_once_and_leaves_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(library.PATH_VARIABLE, str(tmp_path / "absent.so"))
    library.library.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            assert not library.available()
            assert not library.available()
        assert len(caplog.records) == 1
        assert dispatch.select("op", (torch.ones(1),), library.available) == "reference"
    finally:
        monkeypatch.undo()
        library.library.cache_clear()


def test_library_that_does_not_load_leaves_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setenv(library.PATH_VARIABLE, str(broken))
    library.library.cache_clear()
    try:
        assert library.library() is None
    finally:
        monkeypatch.undo()
        library.library.cache_clear()


@native
def test_library_of_other_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in library.SOURCES.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(library, "SOURCES", tmp_path)
    library.library.cache_clear()
    try:
        assert library.library() is not None
        library.library.cache_clear()
        with (tmp_path / "parallel.hpp").open("a") as changed:
            changed.write("// one more line")
        with pytest.raises(library.StaleLibraryError, match=r"built from other sources.*run `make"):
            library.library()
    finally:
        monkeypatch.undo()
        library.library.cache_clear()
