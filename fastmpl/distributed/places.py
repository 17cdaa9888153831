"""Where a rank is: the functions of fastmpl that its main thread is in, short enough for a heartbeat."""

import sys
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import Final

DEEPEST: Final = 4  # functions in a heartbeat, the innermost ones
PACKAGE: Final = Path(__file__).parents[1]


def _main_frame() -> FrameType | None:
    return sys._current_frames().get(threading.main_thread().ident or 0)


def describe_place() -> str:
    """`training.py:_train:236 > ranks.py:all_reduce_sum_:61`: functions of fastmpl, the innermost last."""
    found: list[str] = []
    frame = _main_frame()
    while frame is not None and len(found) < DEEPEST:
        file = frame.f_code.co_filename
        if file.startswith(str(PACKAGE)) and "contextlib" not in file:
            found.append(f"{Path(file).name}:{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return " > ".join(reversed(found)) or "unknown"


def whole_stack() -> str:
    """The stack of the main thread, as a traceback prints it."""
    frame = _main_frame()
    return "".join(traceback.format_stack(frame)) if frame is not None else ""
