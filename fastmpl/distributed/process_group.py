"""The process group of a run: its ranks meet, and leave together.

A launcher (`deepspeed`, `torchrun`) starts one process for each device and passes it its rank in the environment. Nothing
of DeepSpeed is imported here: its launcher is a program of its own, and ranks that hold whole networks need no engine.
Leaves out the collectives of a step (`fastmpl.distributed.ranks`) and when ranks stop
(`fastmpl.distributed.stop_agreement`, `fastmpl.distributed.parent_process`).
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from fastmpl.distributed.bounded_store import SharedStore
from fastmpl.distributed.open_files import allow_open_files
from fastmpl.distributed.parent_process import ParentProcess, end_with_parent, identity
from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.distributed.signals import Stopper
from fastmpl.distributed.stop_agreement import GRACE, StopAgreement, first_line
from fastmpl.errors import ConfigError, FastMPLError, PeerLostError
from fastmpl.untrusted import read_json_object

START: Final = 300  # seconds within which all ranks must have started
MEETING: Final = ".meeting.json"
STACKS: Final = "stacks"  # folder of what each rank was in when a rank was lost


class Place(NamedTuple):
    """The rank of this process, and the number of ranks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this machine; also the number of its device
    local_size: int = 1
    is_launched: bool = False  # a launcher started this process, which must end with it

    @property
    def is_first(self) -> bool:
        """Whether this process logs, reports and owns the run's folder."""
        return self.rank == 0


def read_place(environment: Mapping[str, str] = os.environ) -> Place:
    """The place that the launcher wrote into the environment; a single process without a launcher.

    Raises ConfigError if a variable is no number, or a rank is not below the number of ranks.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Place()
    size = _read_number(environment, "WORLD_SIZE", least=1)
    local = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if environment.get(name)), "WORLD_SIZE")
    local_size = _read_number(environment, local, least=1)
    local_rank = _read_number(environment, "LOCAL_RANK") if environment.get("LOCAL_RANK") else 0
    rank = _read_number(environment, "RANK")
    for name, number, limit, ranks in (
        ("RANK", rank, size, "WORLD_SIZE"),
        ("LOCAL_RANK", local_rank, local_size, local),
    ):
        if number >= limit:
            raise ConfigError(
                f"The environment has {name} = {number} and {ranks} = {limit}, and ranks count from 0. "
                "Start the ranks by torchrun or deepspeed, which set both, or unset them for a single process."
            )
    return Place(rank, size, local_rank, local_size, True)


def _read_number(environment: Mapping[str, str], name: str, least: int = 0) -> int:
    value = environment[name]
    if not value.strip().isdecimal() or int(value) < least:
        raise ConfigError(
            f"The environment has {name} = {value!r}, and a number of {least} or more is needed. "
            "Start the ranks by torchrun or deepspeed, which set it, or unset it for a single process."
        )
    return int(value)


class Stops(Protocol):
    """Decides after which step a rank stops: a Stopper in one process, a StopAgreement between several."""

    def begin(self, step: int) -> None: ...
    def stops_after(self, step: int) -> bool: ...
    def reason(self, folder: Path, step: int) -> FastMPLError: ...


class Group(NamedTuple):
    """The ranks, and what decides when they stop. `saving` has the same ranks, and is used by the thread that saves."""

    ranks: Ranks
    stops: Stops
    saving: Ranks = ALONE


@contextmanager
def join_group(here: Place, folder: Path, stopper: Callable[[], Stopper], timeout: int) -> Iterator[Group]:
    """Joins the group of all ranks for the block, and leaves it together with them.

    folder: the run's, on a disk that all ranks share. stopper: called once all ranks have met; it handles signals from
    then on, because a rank that still waits has nothing to save. timeout: seconds after which a collective fails. Raises
    PeerLostError if a rank does not start or is lost, and ToldByPeer if another rank has already reported the error.
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
    backend = choose_backend(here)
    store = _connect(here, folder, timeout, backend)
    failed = True
    try:
        with StopAgreement(
            stopper(),
            here.rank,
            here.size,
            store,
            ParentProcess(),
            timeout=timeout,
            stacks=folder / STACKS,
            patience=timeout if backend == "nccl" else None,  # NCCL's own watchdog names nobody
        ) as guard:
            saving = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            assert isinstance(saving, dist.ProcessGroup)  # every rank is one of it
            yield Group(Ranks(here.rank, here.size), guard, Ranks(here.rank, here.size, saving))
        failed = False
    finally:
        leave_group(failed=failed)


def leave_group(*, failed: bool) -> None:
    """Ends the process group.

    NCCL ends one together with all ranks. A rank that failed would wait there for others which wait for it, before it has
    said what failed: its group is aborted, and where even that takes long, left to the end of the process.
    """
    if not failed or dist.get_backend() != "nccl":
        dist.destroy_process_group()
        return

    def abort() -> None:
        with suppress(RuntimeError):
            dist.distributed_c10d._abort_process_group()

    thread = threading.Thread(target=abort, name="leaving", daemon=True)
    thread.start()
    thread.join(GRACE)


def choose_backend(here: Place) -> str:
    """NCCL, with this rank's GPU as the current device, or gloo where there is no GPU.

    Raises ConfigError where no GPU is left for this rank.
    """
    if not torch.cuda.is_available():
        return "gloo"
    count = torch.cuda.device_count()
    if here.local_rank >= count:
        raise ConfigError(
            f"{here.local_size} ranks were started on this machine, and rank {here.rank} sees {count} GPU"
            f"{'s' * (count > 1)}: each rank needs one of its own. Start as many ranks as there are GPUs, and let every "
            "rank see all of them (CUDA_VISIBLE_DEVICES)."
        )
    torch.cuda.set_device(here.local_rank)
    return "nccl"


def _connect(here: Place, folder: Path, timeout: int, backend: str) -> SharedStore:
    """Waits for all ranks, makes their process group, and gives their store."""
    allow_open_files(here.size)
    try:
        store = _meet(here, folder)
        inner = PrefixStore("group", store)
        wait = timedelta(seconds=timeout)
        dist.init_process_group(backend, store=inner, rank=here.rank, world_size=here.size, timeout=wait)
    except (OSError, RuntimeError) as error:
        raise PeerLostError(
            f"Not all of the {here.size} ranks started within {START} s ({first_line(error)}). Look for the error of "
            "another rank above, and check that the machines can reach each other."
        ) from error
    return store


def _meet(here: Place, folder: Path) -> TCPStore | PrefixStore:
    """The store, which rank 0 serves. On one machine it uses a free port: the launcher's may belong to another run."""
    wait = timedelta(seconds=START)
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", 29500))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's own store, which restarts share
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
    return TCPStore("127.0.0.1", _read_port(folder / MEETING), here.size, is_master=False, timeout=wait)


def _read_port(path: Path) -> int:
    """The port that rank 0 of this launcher wrote; a file of an earlier run is not accepted."""
    until = time.monotonic() + START
    while time.monotonic() < until:
        try:
            found = read_json_object(path)
        except (OSError, ValueError):
            found = {}
        first = found.get("first")
        session = _session(first if type(first) is int else 0)
        if session == {key: found.get(key) for key in session} and all(session.values()):
            return int(found["port"])
        time.sleep(0.05)
    raise TimeoutError(f"rank 0 wrote no {path}")


def _session(first: int) -> dict[str, str]:
    """Identifies the meeting of this run: its launcher, and a rank 0 that is alive."""
    return {"launcher": identity(os.getppid()), "alive": identity(first)}
