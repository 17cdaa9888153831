"""How many CPU threads a rank may use, decided before torch is imported.

Several ranks with a thread for every core each run 2 to 3.5 times slower than with their share of the cores.
"""

import os
from collections.abc import MutableMapping


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(threads: int = 0, environment: MutableMapping[str, str] = os.environ) -> int:
    """Sets OMP_NUM_THREADS, which torch reads when it is imported, and gives its value.

    threads: of this rank; 0: what the variable says already, else the cores' share of a rank on this machine
    (LOCAL_WORLD_SIZE of torchrun, LOCAL_SIZE of DeepSpeed).
    """
    ranks = int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or 1)
    asked = environment.get("OMP_NUM_THREADS", "")
    count = threads or (int(asked) if asked.isdecimal() and int(asked) else max(1, cores() // ranks))
    environment["OMP_NUM_THREADS"] = str(count)
    return count
