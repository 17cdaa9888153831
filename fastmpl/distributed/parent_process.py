"""A rank outlives neither the launcher that started it nor the command that started the launcher.

Seen with DeepSpeed 0.19: SIGTERM to `deepspeed` ends that command alone, and SIGKILL to the launcher below it leaves the
ranks training with nobody to look after them. The kernel tells a rank of its parent's end; of the grandparent's, its
parent's line in /proc.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Final

_PARENT_DEATH: Final = 1  # PR_SET_PDEATHSIG of prctl(2)


def end_with_parent() -> None:
    """Asks the kernel for a SIGTERM to this process when the one that started it ends (Linux alone)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH, int(signal.SIGTERM), 0, 0, 0)


def identity(process: int) -> str:
    """The process of that number, told from another that had the number before, and from itself once it has ended."""
    return "" if _stat(process, 0) in ("Z", "X") else f"{process} {_stat(process, 19)}"


class Launcher:
    """The launcher as this rank found it."""

    def __init__(self) -> None:
        self.parent = os.getppid()
        above = _stat(self.parent, 1)
        # a `torchrun` whose shell was left goes on; DeepSpeed's launcher without its command is an orphan
        self.command = above if above and b"deepspeed" in _command(self.parent) + _command(int(above)) else ""

    def is_gone(self) -> bool:
        """Whether the launcher, or the command above it, has ended."""
        return os.getppid() != self.parent or bool(self.command and _stat(self.parent, 1) != self.command)


def _stat(process: int, field: int) -> str:
    """A field of /proc/N/stat, empty if unknown. After the name: 0 the state, 1 the parent, 19 the time of the start."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[field]
    except (OSError, IndexError):
        return ""


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
