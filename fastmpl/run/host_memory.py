"""How much of the host's memory is free, for a process in a container too."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

MACHINE: Final = Path("/proc/meminfo")
CONTAINER: Final = Path("/sys/fs/cgroup")  # of version 2: memory.max and memory.current


def available_bytes(machine: Path = MACHINE, container: Path = CONTAINER) -> int:
    """Bytes that can be allocated without pushing other programs out."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, StopIteration):  # not Linux
        lines = machine.read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limit, used = (int((container / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return max(free, 0)
