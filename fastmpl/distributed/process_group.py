"""The processes of a run: how they find each other, end together, and leave none behind.

A launcher (`deepspeed`, `torchrun`) starts one process a device and says to each, in its environment, which it is. Here
they become a group. Nothing of DeepSpeed is imported: its launcher is a program of its own, and copies of whole
networks need no engine. Leaves out what ranks tell each other in a step (`fastmpl.distributed.ranks`) and when they stop
(`fastmpl.distributed.stop_agreement`, `fastmpl.distributed.parent_process`).
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from fastmpl.distributed.parent_process import Launcher, end_with_parent, identity
from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.distributed.signals import Stopper
from fastmpl.distributed.stop_agreement import Guard, Store, first_line
from fastmpl.errors import FastMPLError, PeerLostError

START: Final = 300  # seconds in which all ranks must have come
MEETING: Final = ".meeting.json"


class Place(NamedTuple):
    """Which of a run's processes this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this machine: the number of its device
    local_size: int = 1
    is_launched: bool = False  # by a launcher, which this process must not outlive

    @property
    def is_first(self) -> bool:
        """Whether this process logs, reports and owns the run's folder."""
        return self.rank == 0


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """What the launcher said; one process where there is none."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Place()
    size = int(environment["WORLD_SIZE"])
    local_size = int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or size)
    return Place(int(environment["RANK"]), size, int(environment.get("LOCAL_RANK") or 0), local_size, True)


class Stops(Protocol):
    """Who knows after which step a rank stops: a Stopper in one process, a Guard in several."""

    def begin(self, step: int) -> None: ...
    def stops_after(self, step: int) -> bool: ...
    def reason(self, folder: Path, step: int) -> FastMPLError: ...


class Group(NamedTuple):
    """The ranks, and who says when they stop."""

    ranks: Ranks
    stops: Stops


@contextmanager
def joined(here: Place, folder: Path, stopper: Callable[[], Stopper], timeout: int) -> Iterator[Group]:
    """The group of all ranks within the block, which ends with a clean departure of each.

    folder: of the run, on a disk that all ranks see. stopper: called once all ranks have come, and takes their signals
    from then on: one that waits has nothing to save. timeout: seconds after which a collective is given up. Raises
    PeerLostError where a rank does not come or is lost, and ToldByPeer where another has said what happened.
    """
    if here.is_launched:
        end_with_parent()
    if here.size == 1:
        try:
            yield Group(ALONE, stopper())
        finally:
            if dist.is_initialized():  # by an engine, which needs a group
                dist.destroy_process_group()
        return
    store = _connected(here, folder, timeout)
    try:
        with Guard(stopper(), here.rank, here.size, store, Launcher()) as guard:
            yield Group(Ranks(here.rank, here.size), guard)
    finally:
        dist.destroy_process_group()


def _connected(here: Place, folder: Path, timeout: int) -> Store:
    """The store, once all ranks are there and have a process group."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(here.local_rank)
    try:
        store = _meet(here, folder)
        inner = PrefixStore("group", store)
        wait = timedelta(seconds=timeout)
        dist.init_process_group(backend, store=inner, rank=here.rank, world_size=here.size, timeout=wait)
    except (OSError, RuntimeError) as error:
        raise PeerLostError(
            f"Not all of {here.size} ranks came within {START} s ({first_line(error)}). Look for the error of another "
            "rank above, and whether the machines reach each other."
        ) from error
    return store


def _meet(here: Place, folder: Path) -> TCPStore | PrefixStore:
    """The store, held by rank 0. On one machine it takes a free port: the launcher's may be another run's."""
    wait = timedelta(seconds=START)
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", 29500))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's own, one run after another in it
        served = TCPStore(address, port, here.size, is_master=False, timeout=wait)
        return PrefixStore(f"fastmpl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", served)
    if here.local_size < here.size:
        return TCPStore(address, port, here.size, is_master=here.is_first, timeout=wait)
    if here.is_first:
        store = TCPStore("127.0.0.1", 0, here.size, is_master=True, timeout=wait, wait_for_workers=False)
        draft = folder / f"{MEETING}.tmp"
        draft.write_text(json.dumps({"first": os.getpid(), **_session(os.getpid()), "port": store.port}))
        draft.replace(folder / MEETING)
        return store
    return TCPStore("127.0.0.1", _told(folder / MEETING), here.size, is_master=False, timeout=wait)


def _told(path: Path) -> int:
    """The port that rank 0 of the same launcher wrote; not that of a run which was here before."""
    until = time.monotonic() + START
    while time.monotonic() < until:
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError):
            told = {}
        session = _session(told.get("first", 0))
        if session == {key: told.get(key) for key in session} and all(session.values()):
            return int(told["port"])
        time.sleep(0.05)
    raise TimeoutError(f"rank 0 wrote no {path}")


def _session(first: int) -> dict[str, str]:
    """What tells this run's meeting from another's: its launcher, and that rank 0 is alive."""
    return {"launcher": identity(os.getppid()), "alive": identity(first)}
