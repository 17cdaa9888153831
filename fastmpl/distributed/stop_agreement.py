"""When ranks stop: all after the same step if one is asked to, and soon if one fails.

Between steps the ranks wait for each other in collectives alone, so one that stopped by itself would leave the others
in theirs. A thread of each rank therefore talks to the others through the store, and the device is never asked.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple, Protocol, Self

from fastmpl.distributed.parent_process import Launcher
from fastmpl.distributed.signals import Stopper
from fastmpl.errors import FastMPLError, PeerLostError, ToldByPeer

EVERY: Final = 0.2  # seconds between two looks
BEATS: Final = 1.5  # seconds after which a rank whose thread did not look again is silent
GRACE: Final = 5.0  # seconds for a rank to end by itself after another failed
SPEAKS_FIRST: Final = 0.5  # seconds: a launcher ends every rank as soon as one has ended
LONGEST: Final = 25.0  # seconds for saving after a signal; launchers kill after 30


class Fault(NamedTuple):
    """What the first rank that failed said."""

    code: int
    sentence: str


class Store(Protocol):
    """What the ranks of a run write for each other (torch.distributed.TCPStore)."""

    def add(self, key: str, amount: int) -> int: ...
    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...
    def set(self, key: str, value: str) -> None: ...


class Guard:
    """Watches one rank's signals, launcher and peers, from `with` to its end.

    The agreement: a signal on any rank is told to all. Each rank's thread then registers the step that its rank is in,
    after which the rank begins no other before it knows all registrations. Their largest is the step to stop after:
    none has gone beyond it, and every rank can reach it, because all others do.
    """

    def __init__(self, stopper: Stopper, rank: int, size: int, store: Store, launcher: Launcher) -> None:
        self.stopper, self.rank, self.size, self.store, self.launcher = stopper, rank, size, store, launcher
        self._turn = threading.Lock()
        self._begun, self._registered = 0, False
        self._fault: Fault | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Ends together with the others. Raises ToldByPeer where another rank has said what happened."""
        self._over.set()
        self._thread.join()
        if error is None:
            self._leave(LONGEST)
            return
        lost = is_of_a_lost_peer(error)
        said = PeerLostError(self._lost(error)) if lost and self._first_fault() is None else error
        code = said.exit_code if isinstance(said, FastMPLError) else 1
        fault = self._tell(Fault(code, str(said)))
        self._leave(GRACE / 2)
        if fault is not None and (lost or isinstance(error, FastMPLError)):
            time.sleep(SPEAKS_FIRST)
            raise ToldByPeer(fault.code, fault.sentence) from error
        if said is not error:
            raise said from error

    def begin(self, step: int) -> None:
        """The rank begins its training with `step`, counted from 1."""
        with self._turn:
            self._begun = step

    def stops_after(self, step: int) -> bool:
        """Whether all ranks stop after `step`; if not, the next one has begun."""
        with self._turn:
            if not self._registered:
                self._begun = step + 1
                return False
        if step < self._last():
            return False
        self.stopper.by = self.stopper.by or signal.Signals(int(self.store.get("stop")))
        return True

    def reason(self, folder: Path, step: int) -> FastMPLError:
        """What to raise once the run is saved."""
        return self.stopper.reason(folder, step)

    def _last(self) -> int:
        """The step that the ranks agree on, once all have registered."""
        registered = [f"in/{rank}" for rank in range(self.size)]
        while not self.store.check(registered):  # a waiting `get` would keep the store from the thread
            time.sleep(EVERY / 10)
        return max(int(self.store.get(key)) for key in registered)

    def _watch(self) -> None:
        asked = failed = None
        while not self._over.wait(EVERY):
            now = time.monotonic()
            try:
                self.store.add(f"beat/{self.rank}", 1)
                if asked is None and self._is_stopping():
                    asked = now
                if failed is None and self._first_fault() is not None:
                    failed = now
            except RuntimeError:  # rank 0, which holds the store, is gone
                failed = failed or now
            if failed is not None and now - failed > GRACE:  # the others are gone, and this rank waits for them
                os._exit(PeerLostError.exit_code if self._fault is None else self._fault.code)
            if asked is not None and now - asked > LONGEST:
                print(f"Ranks: rank {self.rank} did not stop in {LONGEST:.0f} s and is ended.", file=sys.stderr)
                os._exit(PeerLostError.exit_code)

    def _is_stopping(self) -> bool:
        """Passes a signal on, and registers this rank's step once there was one anywhere."""
        if self.launcher.is_gone() and not self.stopper.by:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.stopper.by and not self.store.check(["stop"]):
            self.store.set("stop", str(int(self.stopper.by)))
        if not self.store.check(["stop"]):
            return False
        with self._turn:
            self.store.set(f"in/{self.rank}", str(self._begun))
            self._registered = True
        return True

    def _first_fault(self) -> Fault | None:
        try:
            if self._fault is None and self.store.check(["fault"]):
                self._fault = Fault(*json.loads(self.store.get("fault")))
        except RuntimeError:  # the store went with rank 0
            return self._fault
        return self._fault

    def _tell(self, mine: Fault) -> Fault | None:
        """Tells the others; None where this rank is the first, else what the first one said."""
        try:
            if self.store.add("faults", 1) == 1:
                self.store.set("fault", json.dumps(mine))
                return None
            if self._fault is None:
                self._fault = Fault(*json.loads(self.store.get("fault")))
        except RuntimeError:  # without the store, the lowest rank that is left speaks
            return self._fault or (None if self.rank == 1 else mine)
        return self._fault

    def _leave(self, seconds: float) -> None:
        """The last use of the store; the first rank, which holds it, waits for the others to have had theirs."""
        try:
            self.store.add("left", 1)
            until = time.monotonic() + seconds
            while self.rank == 0 and self.store.add("left", 0) < self.size and time.monotonic() < until:
                time.sleep(EVERY / 10)
        except RuntimeError:  # rank 0 was lost, or had waited long enough
            return

    def _lost(self, error: BaseException) -> str:
        """The sentence for a collective that failed, with the ranks whose threads no longer look."""
        silent: list[int] = []
        try:
            before = [self.store.add(f"beat/{rank}", 0) for rank in range(self.size)]
            time.sleep(BEATS)
            now = [self.store.add(f"beat/{rank}", 0) for rank in range(self.size)]
            silent = [rank for rank in range(self.size) if rank != self.rank and now[rank] == before[rank]]
        except RuntimeError:
            silent = [0]
        who = f"Rank {' and '.join(map(str, silent))} no longer answers" if silent else "A rank did not answer in time"
        return f"{who}: {first_line(error)}. The same command continues at the newest checkpoint."


def is_of_a_lost_peer(error: BaseException) -> bool:
    """Whether a collective raised this because another rank ended or hangs."""
    words = ("peer", "imed out", "Connection reset", "Broken pipe", "ocket", "NCCL", "gloo")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def first_line(error: BaseException) -> str:
    """What an error says, shortened."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200].rstrip(". ")
