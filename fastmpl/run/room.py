"""Whether a disk has room for what a run will write, asked before the first step: a checkpoint's bytes are known."""

import errno
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

from fastmpl.config import Config
from fastmpl.distributed.ranks import Ranks
from fastmpl.errors import StorageError
from fastmpl.run import checkpoint
from fastmpl.run.checkpoint import Checkpoint

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # full, used up, read-only, broken
SPARE: Final = 1 << 20  # bytes for metrics, the report and the status


def require_room(folder: Path, made: Checkpoint, config: Config, ranks: Ranks) -> None:
    """Raises StorageError on all ranks if the disk of `folder` is too small for the checkpoints that a run keeps.

    made: the present state, whose size all checkpoints have. Those that are in the folder already count: they are replaced.
    """
    shared: Collection[str] = made.tensors if ranks.rank == 0 else {*made.own, *made.sharded}
    mine = sum(made.tensors[name].nbytes for name in shared if name in made.tensors)
    size = sum(ranks.all_gather_object(mine))
    total = config.run.steps + config.finetune.steps
    saves = -(-max(total - made.step, 0) // config.run.checkpoint_every) + 1
    sentence = ""
    if ranks.rank == 0 and made.step < total:
        kept = min(saves, config.run.keep + 2)  # the best one too, and the next while it is written
        there = len(checkpoint.steps(folder / "checkpoints"))
        count = max(kept - there, 1)
        needed = count * size + SPARE
        free = shutil.disk_usage(folder).free
        if free < needed:
            sentence = (
                f"{folder} needs {needed / 1e6:.1f} MB for {count} checkpoints of {size / 1e6:.1f} MB, and the disk "
                f"has {free / 1e6:.1f}: free {(needed - free) / 1e6:.1f} MB, lower run.keep, or set run.output to "
                "another disk."
            )
    if said := ranks.all_gather_object(sentence)[0]:
        raise StorageError(said)


def explain_full_disk(error: BaseException, folder: Path) -> BaseException:
    """The StorageError for an OSError of a full or broken disk; any other error as it is."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return error
    free = shutil.disk_usage(folder).free / 1e6 if folder.is_dir() else 0.0
    where = error.filename or folder
    return StorageError(f"{where} cannot be written: {error.strerror} ({free:.1f} MB are free). Free some space.")
