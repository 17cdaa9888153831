"""Finds the native library, loads it once, and lets it use torch's threads.

The library may be absent (no C++ compiler at installation). Then `library()` is None, the log says so once, and the
references serve. A library that was built from other sources than those beside this package is refused: its functions may
take other arguments, and would read and write anywhere. Each op's native.py declares the arguments of its functions.
"""

import ctypes
import hashlib
import logging
import os
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

NAME = "libfastmpl_native.so"
PATH_VARIABLE = "FASTMPL_NATIVE_LIBRARY"
SOURCES = Path(__file__).parents[1] / "csrc"  # in a checkout; a wheel has no sources and contains its library

log = logging.getLogger(__name__)


def _path() -> Path:
    """Where the library should be: at PATH_VARIABLE, else in this package. An editable installation keeps sources and build
    products in two folders, so the folder of this file would be wrong."""
    if explicit := os.environ.get(PATH_VARIABLE):
        return Path(explicit)
    return Path(str(files("fastmpl_kernels").joinpath(NAME)))


def _lend_threads(native: ctypes.CDLL) -> None:
    """Gives the library torch's C function `torch_parallel_for` (torch 2.10 and later); without it loops are serial."""
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not torch_cpu.is_file():
        return
    exported = ctypes.CDLL(str(torch_cpu))  # already loaded: this only finds it
    if hasattr(exported, "torch_parallel_for"):
        native.fastmpl_use.argtypes = [ctypes.c_void_p]
        native.fastmpl_use.restype = None
        native.fastmpl_use(ctypes.cast(exported.torch_parallel_for, ctypes.c_void_p))


class StaleLibraryError(RuntimeError):
    """The native library was built from other sources than this package's."""


def _refuse_stale(native: ctypes.CDLL, path: Path) -> None:
    if not SOURCES.is_dir():
        return
    built_from = ""
    if hasattr(native, "fastmpl_sources"):
        native.fastmpl_sources.argtypes, native.fastmpl_sources.restype = [], ctypes.c_char_p
        built_from = native.fastmpl_sources().decode()
    files = sorted(f for f in SOURCES.iterdir() if f.is_file() and not f.name.startswith("."))
    hashes = "".join(hashlib.sha256(f.read_bytes()).hexdigest() for f in files)  # as in CMakeLists.txt
    if built_from != hashlib.sha256(hashes.encode()).hexdigest():
        raise StaleLibraryError(
            f"The native library {path} was built from other sources than {SOURCES}: run `make .venv/.built`."
        )


@cache
def library() -> ctypes.CDLL | None:
    """The loaded native library, or None where it was not built or does not load.

    Raises StaleLibraryError for one that was built from other sources.
    """
    path = _path()
    if not path.is_file():
        log.info("%s was not built: the reference implementations run on CPU", path)
        return None
    try:
        native = ctypes.CDLL(str(path))
    except OSError as error:
        log.warning("the native kernels do not load here (%s): the reference implementations run on CPU", error)
        return None
    _refuse_stale(native, path)
    _lend_threads(native)
    return native


def available() -> bool:
    """Whether the native kernels can be called."""
    return library() is not None


def pointer(tensor: torch.Tensor | None) -> int | None:
    """The address of a tensor's first element; None, which is a null pointer, for no tensor."""
    return None if tensor is None else tensor.data_ptr()
