"""The number of CPU threads of a rank, set before torch is imported.

Several ranks that each use one thread for every core run 2 to 3.5 times slower than ranks that share the cores.
"""

import os
from collections.abc import MutableMapping


def cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(threads: int = 0, environment: MutableMapping[str, str] = os.environ) -> int:
    """Sets OMP_NUM_THREADS, which torch reads when it is imported, and returns its value.

    threads: of this rank. 0 keeps the variable if it is set, and otherwise divides the cores by the ranks of this machine
    (LOCAL_WORLD_SIZE of torchrun, LOCAL_SIZE of DeepSpeed).
    """
    ranks = int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or 1)
    asked = environment.get("OMP_NUM_THREADS", "")
    count = threads or (int(asked) if asked.isdecimal() and int(asked) else max(1, cores() // ranks))
    environment["OMP_NUM_THREADS"] = str(count)
    return count
