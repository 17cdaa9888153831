"""Ends a rank when the launcher that started it, or the launcher's parent, dies.

Observed with DeepSpeed 0.19: SIGTERM to `deepspeed` ends that command alone, and SIGKILL to its launcher leaves the ranks
training without a supervisor. The kernel signals a rank when its parent ends. The end of the grandparent is read from the
parent's line in /proc.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Final

_PARENT_DEATH: Final = 1  # PR_SET_PDEATHSIG of prctl(2)
_STATE, _PARENT, _START_TIME = 0, 1, 19  # fields of /proc/PID/stat, counted after the name


def end_with_parent() -> None:
    """Asks the kernel to send SIGTERM to this process when its parent ends (Linux only)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH, int(signal.SIGTERM), 0, 0, 0)


def identity(process: int) -> str:
    """A process id that is safe against reuse: pid and start time; empty if the process is a zombie."""
    return "" if _read_stat(process, _STATE) in ("Z", "X") else f"{process} {_read_stat(process, _START_TIME)}"


class ParentProcess:
    """The parent of this rank, and the command above it, as they were when the rank started."""

    def __init__(self) -> None:
        self.parent = os.getppid()
        above = _read_stat(self.parent, _PARENT)
        # torchrun survives the shell that started it; DeepSpeed's launcher without its command is an orphan
        names_deepspeed = bool(above) and b"deepspeed" in _read_command(self.parent) + _read_command(int(above))
        self.command = above if names_deepspeed else ""

    def is_gone(self) -> bool:
        """Whether the parent, or the command above it, has ended."""
        return os.getppid() != self.parent or bool(self.command and _read_stat(self.parent, _PARENT) != self.command)


def _read_stat(process: int, field: int) -> str:
    """A field of /proc/PID/stat; empty if it cannot be read."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[field]
    except (OSError, IndexError):
        return ""


def _read_command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
