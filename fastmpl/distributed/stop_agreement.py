"""When ranks stop: all of them after the same step if one is asked to, and within seconds if one fails.

Ranks wait for each other in collectives, so a rank that stopped by itself would leave the others waiting. A thread of each
rank therefore talks to the others through the store. The device is never read for it.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple, Protocol, Self

from fastmpl.distributed.parent_process import ParentProcess
from fastmpl.distributed.signals import Stopper
from fastmpl.errors import FastMPLError, PeerLostError, ToldByPeer

EVERY: Final = 0.2  # seconds between two checks of the thread
BEATS: Final = 1.5  # seconds without a heartbeat after which a rank is named as silent
GRACE: Final = 5.0  # seconds in which a rank may end by itself after another failed
SPEAKS_FIRST: Final = 0.5  # seconds: a launcher ends every rank as soon as one has ended
LONGEST: Final = 25.0  # seconds to save after a signal; launchers kill after 30


class RankFault(NamedTuple):
    """The exit code and the sentence of the first rank that failed."""

    code: int
    sentence: str


class SharedStore(Protocol):
    """The keys and values that the ranks of a run share (torch.distributed.TCPStore)."""

    def add(self, key: str, amount: int) -> int: ...
    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...
    def set(self, key: str, value: str) -> None: ...


class StopAgreement:
    """Watches the signals, the launcher and the peers of one rank while it is entered.

    The agreement: a signal on any rank is passed to all. Each rank's thread then registers the step that its rank is in;
    after that, the rank begins no further step before it has read all registrations. The ranks stop after the largest
    registered step: no rank has passed it, and every rank can reach it because all others do.
    """

    def __init__(self, stopper: Stopper, rank: int, size: int, store: SharedStore, parent: ParentProcess) -> None:
        self.stopper, self.rank, self.size, self.store, self.parent = stopper, rank, size, store, parent
        self._turn = threading.Lock()
        self._begun, self._registered = 0, False
        self._fault: RankFault | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Leaves together with the other ranks. Raises ToldByPeer if another rank has already reported the error."""
        self._over.set()
        self._thread.join()
        if error is None:
            self._leave(LONGEST)
            return
        lost = is_lost_peer(error)
        reported = PeerLostError(self._describe_loss(error)) if lost and self._first_fault() is None else error
        code = reported.exit_code if isinstance(reported, FastMPLError) else 1
        fault = self._report_fault(RankFault(code, str(reported)))
        self._leave(GRACE / 2)
        if fault is not None and (lost or isinstance(error, FastMPLError)):
            time.sleep(SPEAKS_FIRST)
            raise ToldByPeer(fault.code, fault.sentence) from error
        if reported is not error:
            raise reported from error

    def begin(self, step: int) -> None:
        """The rank begins its training with `step`, counted from 1."""
        with self._turn:
            self._begun = step

    def stops_after(self, step: int) -> bool:
        """Whether all ranks stop after `step`; if not, the next step counts as begun."""
        with self._turn:
            if not self._registered:
                self._begun = step + 1
                return False
        if step < self._agreed_step():
            return False
        self.stopper.by = self.stopper.by or signal.Signals(int(self.store.get("stop")))
        return True

    def reason(self, folder: Path, step: int) -> FastMPLError:
        """The error to raise once the run is saved."""
        return self.stopper.reason(folder, step)

    def _agreed_step(self) -> int:
        """Waits until all ranks have registered; the step that they agree on."""
        registered = [f"in/{rank}" for rank in range(self.size)]
        while not self.store.check(registered):  # a blocking `get` would lock the thread out of the store
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
            except RuntimeError:  # rank 0, which serves the store, is gone
                failed = failed or now
            if failed is not None and now - failed > GRACE:  # this rank still waits for ranks that are gone
                os._exit(PeerLostError.exit_code if self._fault is None else self._fault.code)
            if asked is not None and now - asked > LONGEST:
                print(f"Ranks: rank {self.rank} did not stop in {LONGEST:.0f} s and is ended.", file=sys.stderr)
                os._exit(PeerLostError.exit_code)

    def _is_stopping(self) -> bool:
        """Passes a signal on to all ranks; registers this rank's step once any rank got one."""
        if self.parent.is_gone() and not self.stopper.by:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.stopper.by and not self.store.check(["stop"]):
            self.store.set("stop", str(int(self.stopper.by)))
        if not self.store.check(["stop"]):
            return False
        with self._turn:
            self.store.set(f"in/{self.rank}", str(self._begun))
            self._registered = True
        return True

    def _first_fault(self) -> RankFault | None:
        try:
            if self._fault is None and self.store.check(["fault"]):
                self._fault = RankFault(*json.loads(self.store.get("fault")))
        except RuntimeError:  # the store ended with rank 0
            return self._fault
        return self._fault

    def _report_fault(self, mine: RankFault) -> RankFault | None:
        """Reports this rank's fault to the others: None if it is the first, otherwise the first rank's fault."""
        try:
            if self.store.add("faults", 1) == 1:
                self.store.set("fault", json.dumps(mine))
                return None
            if self._fault is None:
                self._fault = RankFault(*json.loads(self.store.get("fault")))
        except RuntimeError:  # without the store, the lowest remaining rank reports
            return self._fault or (None if self.rank == 1 else mine)
        return self._fault

    def _leave(self, seconds: float) -> None:
        """Uses the store for the last time; rank 0, which serves it, waits until the others have done so too."""
        try:
            self.store.add("left", 1)
            until = time.monotonic() + seconds
            while self.rank == 0 and self.store.add("left", 0) < self.size and time.monotonic() < until:
                time.sleep(EVERY / 10)
        except RuntimeError:  # rank 0 is lost, or stopped waiting
            return

    def _describe_loss(self, error: BaseException) -> str:
        """The sentence for a failed collective, with the ranks that no longer send heartbeats."""
        silent: list[int] = []
        try:
            first = [self.store.add(f"beat/{rank}", 0) for rank in range(self.size)]
            time.sleep(BEATS)
            second = [self.store.add(f"beat/{rank}", 0) for rank in range(self.size)]
            silent = [rank for rank in range(self.size) if rank != self.rank and second[rank] == first[rank]]
        except RuntimeError:
            silent = [0]
        who = f"Rank {' and '.join(map(str, silent))} no longer answers" if silent else "A rank did not answer in time"
        return f"{who}: {first_line(error)}. The same command continues at the newest checkpoint."


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective raised this error because another rank ended or hangs."""
    words = ("peer", "imed out", "Connection reset", "Broken pipe", "ocket", "NCCL", "gloo")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200].rstrip(". ")
