"""The limit of open files, raised to what many ranks need: every rank has a socket to each other one.

Systems often allow a process 1,024 open files, though they let it have more. Over gloo, which also serves the thread that
saves beside NCCL, a rank opens a socket to each other rank and group, and rank 0 one more for each rank's store.
"""

import resource
from typing import Final

from fastmpl.errors import ConfigError

OWN: Final = 512  # files that a rank opens for itself: libraries, images, shards
A_RANK: Final = 3  # two groups over gloo, and of rank 0 the way to its store


def allow_open_files(ranks: int) -> None:
    """Raises this process's limit of open files to what `ranks` ranks need.

    Raises ConfigError where the system forbids that many.
    """
    needed = OWN + A_RANK * ranks
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{ranks} ranks need up to {needed} open files each, and this system allows {hard}. Raise the limit "
            "(`ulimit -Hn`, or LimitNOFILE of the service that starts the ranks), or use fewer ranks."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
