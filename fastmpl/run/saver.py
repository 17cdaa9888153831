"""Checkpoints written beside training, from a snapshot of the state in host memory.

The loop pays for the copy alone. On a GPU it is queued behind the step into page-locked memory, and the host does not wait
for it; on a CPU it is one pass over the state. A thread writes the copies, with a process group of its own, because its
messages would mix with those of the steps. One save is written at a time: the next one waits for it.

A state is written in place, and training waits, if a copy would take more than `SHARE` of the free host memory, or if the
state is larger than `TWICE` and lies in host memory itself.
"""

import copy
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fastmpl.distributed.ranks import Ranks
from fastmpl.errors import StorageError
from fastmpl.run import checkpoint
from fastmpl.run.checkpoint import Checkpoint
from fastmpl.run.host_memory import available_bytes

SHARE: Final = 0.1  # of the free host memory, which the ranks of a machine divide among themselves
TWICE: Final = 1 << 30  # bytes of a rank's state on a CPU that host memory may hold twice
LONGEST: Final = 20.0  # seconds that a run which fails waits for its last save


class Saved(NamedTuple):
    """What came of the save of a step."""

    step: int
    error: StorageError | None


class Snapshot:
    """Copies of tensors in host memory, which the next snapshot overwrites."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}

    def missing_bytes(self, tensors: Mapping[str, Tensor]) -> int:
        """Bytes that `take` would allocate."""
        return sum(tensor.nbytes for name, tensor in tensors.items() if not _fits(self._copies.get(name), tensor))

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values that the tensors have once all queued work is done."""
        before, self._copies = self._copies, {}
        for name, tensor in tensors.items():
            found = before.get(name)
            self._copies[name] = found if found is not None and _fits(found, tensor) else _like(tensor)
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._copies[name].copy_(tensor, non_blocking=True)
        return dict(self._copies)

    def clear(self) -> None:
        self._copies = {}


def _fits(found: Tensor | None, tensor: Tensor) -> bool:
    return found is not None and found.shape == tensor.shape and found.dtype == tensor.dtype


def _like(tensor: Tensor) -> Tensor:
    """Memory for a copy, with the strides of the original: nothing is transposed in the loop."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)


class Saver:
    """Writes the checkpoints of a run, one at a time. Every rank calls it alike."""

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        local_size: int,
        keep: int,
        note: Callable[[str], None],
        require: Callable[[], None] = lambda: None,
    ) -> None:
        """ranks: with a process group that nothing else uses. local_size: ranks of this machine. keep: checkpoints kept.

        require: raises FolderLostError if the run has lost its folder.
        """
        self._require = require
        self._folder, self._ranks, self._local_size, self._keep, self._note = folder, ranks, local_size, keep, note
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._saved: Saved | None = None
        self._failure: BaseException | None = None
        self._is_told = False

    def begin(self, made: Checkpoint, best: int | None) -> None:
        """Saves this state, whose tensors may change as soon as this returns. The save before has been taken.

        best: the step of the selected student, whose checkpoint is kept.
        """
        mine = made.tensors_on(self._ranks.rank)
        made = made._replace(facts=copy.deepcopy(made.facts))
        if reason := self._reason_against_copy(mine):
            self._tell_once(sum(tensor.nbytes for tensor in mine.values()), reason)
            self._snapshot.clear()
            self._write(made, best, None)
            return
        copied = None
        made = made._replace(tensors=self._snapshot.take(mine))
        if torch.cuda.is_available():
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._thread = threading.Thread(target=self._write, args=(made, best, copied), name="saver", daemon=True)
        self._thread.start()

    def take(self, *, wait: bool = False) -> Saved | None:
        """What came of the last save, once; None while it is being written, or if there is none.

        wait: until it is written. Raises what the save raised, unless that is a StorageError.
        """
        if self._thread is not None:
            if self._thread.is_alive() and not wait:
                return None
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        saved, self._saved = self._saved, None
        return saved

    def close(self) -> None:
        """Lets a save that has begun end, within `LONGEST`."""
        if self._thread is not None:
            self._thread.join(LONGEST)

    def _write(self, made: Checkpoint, best: int | None, copied: torch.cuda.Event | None) -> None:
        try:
            if copied is not None:
                copied.synchronize()
            checkpoint.save(self._folder, made, self._ranks, self._require)
            if self._ranks.rank == 0:
                checkpoint.prune(self._folder, self._keep, best)
            self._saved = Saved(made.step, None)
        except StorageError as error:
            self._saved = Saved(made.step, error)
        except BaseException as error:  # of this thread, such as a lost rank: it is raised in the loop
            self._failure = error

    def _reason_against_copy(self, mine: Mapping[str, Tensor]) -> str:
        """Why host memory is to hold no copy of these tensors; empty if it may."""
        if sum(tensor.nbytes for tensor in mine.values() if tensor.device.type == "cpu") > TWICE:
            return "host memory would hold them twice"
        if self._snapshot.missing_bytes(mine) * self._local_size > SHARE * available_bytes():
            return f"a copy would take more than {SHARE:.0%} of the free host memory"
        return ""

    def _tell_once(self, size: int, reason: str) -> None:
        if not self._is_told:
            self._is_told = True
            self._note(f"Checkpoints of {size / 1e9:.1f} GB are written while training waits: {reason}.")
