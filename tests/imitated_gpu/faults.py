"""The errors of the imitated GPU, and the line of code that each names."""

import functools
import sys
from pathlib import Path
from types import FrameType

import torch

_TORCH, _HERE = str(Path(torch.__file__).parent), str(Path(__file__).parent)
_MACHINERY = ("threading.py", "contextlib.py", "queue.py", "mock.py")


class HazardError(BaseException):
    """Two uses of one memory are not ordered, or memory is used after its end. A GPU would give wrong numbers silently.

    It is no Exception on purpose: whatever handles errors of CUDA must not take it for one.
    """


class CaptureRefusedError(RuntimeError):
    """What CUDA refuses while a stream is captured."""


class HostWaitError(RuntimeError):
    """The host waited for the device while `torch.cuda.set_sync_debug_mode("error")` forbade it."""


@functools.cache
def _is_named(filename: str) -> bool:
    if filename.startswith((_TORCH, "<")) or filename.endswith(_MACHINERY):
        return False
    return Path(filename).parent != Path(_HERE) or Path(filename).name.startswith("test_")


def find_line() -> str:
    """The innermost running line outside torch and outside the imitation, as "folder/file.py:line"."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _is_named(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return "?"
    return f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno}"
