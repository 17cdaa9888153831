"""When ranks stop: all of them after the same step if one is asked to, and within seconds if one fails.

Ranks wait for each other in collectives, so a rank that stopped by itself would leave the others waiting. A thread of each
rank therefore talks to the others through the store. The device is never read for it. Every wait has a limit: the store
itself is served by rank 0, which may be the one that stands still. Each rank listens to the next one's heartbeat: NCCL
gives up a collective by itself, but not one that a CUDA graph replays, for which a host would wait for ever.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

from fastmpl.distributed.bounded_store import BoundedStore, SharedStore
from fastmpl.distributed.parent_process import ParentProcess
from fastmpl.distributed.places import PACKAGE, describe_place, whole_stack
from fastmpl.distributed.signals import Stopper
from fastmpl.errors import FastMPLError, PeerLostError, ToldByPeer

EVERY: Final = 0.4  # seconds between two checks of the thread: rank 0 answers five calls for each, of every rank
BEATS: Final = 1.5  # seconds without a heartbeat after which a rank is named as silent
GRACE: Final = 5.0  # seconds in which a rank may end by itself after another failed
SPEAKS_FIRST: Final = 0.5  # seconds: a launcher ends every rank as soon as one has ended
LONGEST: Final = 25.0  # seconds to save after a signal; launchers kill after 30


class RankFault(NamedTuple):
    """The exit code and the sentence of the first rank that failed."""

    code: int
    sentence: str


class Heard(NamedTuple):
    """The heartbeats of the next rank, and when the last one was heard, on time.monotonic's clock."""

    beats: int
    at: float


class StopAgreement:
    """Watches the signals, the launcher and the peers of one rank while it is entered.

    The agreement: a signal on any rank is passed to all. Each rank's thread then registers the step that its rank is in;
    after that, the rank begins no further step before it has read all registrations. The ranks stop after the largest
    registered step: no rank has passed it, and every rank can reach it because all others do.

    A heartbeat says where its rank is (`step 7 at ranks.py:all_reduce_sum_:61`), so that a rank which stands still is
    named together with the operation that it, or the one waiting for it, is in.
    """

    def __init__(
        self,
        stopper: Stopper,
        rank: int,
        size: int,
        store: SharedStore,
        parent: ParentProcess,
        *,
        timeout: float,
        stacks: Path,
        patience: float | None = None,
    ) -> None:
        """timeout: seconds that an answer of rank 0's store may take. stacks: the folder of stacks after a fault. patience:
        seconds without a heartbeat after which the next rank counts as lost; None: somewhat more than `timeout`, within
        which a collective says more of it.
        """
        self.stopper, self.rank, self.size, self.parent = stopper, rank, size, parent
        self._next, self._patience = (rank + 1) % size, timeout + GRACE if patience is None else patience
        self.store, self._timeout, self._stacks = BoundedStore(store, timeout), timeout, stacks
        self._places: dict[int, str] = {}  # of other ranks, when they last gave one
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
        self._thread.join(self._timeout + BEATS)  # it may wait for the store
        try:
            self._end(error)
        finally:
            self.store.close()

    def _end(self, error: BaseException | None) -> None:
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
        """Waits until all ranks have registered; the step that they agree on. Raises RuntimeError after `timeout`."""
        registered = [f"in/{rank}" for rank in range(self.size)]
        until = time.monotonic() + self._timeout
        while not self.store.check(registered):  # a blocking `get` would lock the thread out of the store
            if time.monotonic() > until:
                raise RuntimeError(f"Timed out waiting {self._timeout:.0f} s for all ranks to agree on a last step")
            time.sleep(EVERY / 10)
        return max(int(self.store.get(key)) for key in registered)

    def _watch(self) -> None:
        asked = failed = None
        heard, listens = Heard(-1, time.monotonic()), 0.0
        pause = EVERY / 10  # until it is known where rank 0 is, which cannot be asked once it stands still
        while not self._over.wait(pause):
            now = time.monotonic()
            try:
                self._beat()
                pause = EVERY if self.rank == 0 or 0 in self._places else pause
                if failed is None and now >= listens:
                    heard, listens = self._listen(heard, now), now + BEATS
                if asked is None and self._is_stopping():
                    asked = now
                if failed is None and self._first_fault() is not None:
                    failed = now
            except RuntimeError:  # rank 0, which serves the store, is gone
                failed = failed or now
            if failed is not None and now - failed > GRACE:  # this rank still waits for ranks that are gone
                self._write_stack()
                if self._fault is None:
                    self._print_end(f"{self._describe_silence([0])} Rank {self.rank} is ended")
                os._exit(PeerLostError.exit_code if self._fault is None else self._fault.code)
            if asked is not None and now - asked > LONGEST:
                self._write_stack()
                self._print_end(f"rank {self.rank} did not stop in {LONGEST:.0f} s and is ended")
                os._exit(PeerLostError.exit_code)

    def _beat(self) -> None:
        """Tells the others that this rank is alive and where it is, and keeps where rank 0 is, which serves the store."""
        self.store.set(f"place/{self.rank}", f"step {self._begun} at {describe_place()}")
        self.store.add(f"beat/{self.rank}", 1)
        if self.rank and (0 in self._places or self.store.check(["place/0"])):
            self._places[0] = self.store.get("place/0").decode()

    def _listen(self, before: Heard, now: float) -> Heard:
        """What is heard of the next rank. Reports it as lost after `patience` seconds of silence, unless it has left."""
        beats = self.store.add(f"beat/{self._next}", 0)
        if beats != before.beats:
            return Heard(beats, now)
        if now - before.at > self._patience and not self.store.check([f"left/{self._next}"]):
            if self.store.check([f"place/{self._next}"]):
                self._places[self._next] = self.store.get(f"place/{self._next}").decode()
            sentence = f"{self._describe_silence([self._next])} The same command continues at the newest checkpoint."
            if self._report_fault(RankFault(PeerLostError.exit_code, sentence)) is None:
                print(f"Ranks: {sentence}", file=sys.stderr)
        return before

    def _print_end(self, sentence: str) -> None:
        print(f"Ranks: {sentence}, at {describe_place()}.", file=sys.stderr)

    def _write_stack(self) -> None:
        """Writes this rank's stack for whoever looks for the cause; a disk that refuses it changes nothing."""
        with suppress(OSError):
            self._stacks.mkdir(exist_ok=True)
            (self._stacks / f"rank-{self.rank}.txt").write_text(f"step {self._begun}\n{whole_stack()}")

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
            self.store.set(f"left/{self.rank}", "")
            self.store.add("left", 1)
            until = time.monotonic() + seconds
            while self.rank == 0 and self.store.add("left", 0) < self.size and time.monotonic() < until:
                time.sleep(EVERY / 10)
        except RuntimeError:  # rank 0 is lost, or stopped waiting
            return

    def _describe_loss(self, error: BaseException) -> str:
        """The sentence for a failed collective: the ranks without heartbeats, what they were in, and what this rank was."""
        silent = [0]
        with suppress(RuntimeError):
            first = [self.store.add(f"beat/{rank}", 0) for rank in range(self.size)]
            time.sleep(BEATS)
            second = [self.store.add(f"beat/{rank}", 0) for rank in range(self.size)]
            silent = [rank for rank in range(self.size) if rank != self.rank and second[rank] == first[rank]]
            for rank in silent:
                if self.store.check([f"place/{rank}"]):
                    self._places[rank] = self.store.get(f"place/{rank}").decode()
        who = self._describe_silence(silent) if silent else "A rank did not answer in time."
        mine = f"Rank {self.rank} waited in step {self._begun} at {_describe_raise(error)}"
        with suppress(OSError):
            self._stacks.mkdir(exist_ok=True)
            (self._stacks / f"rank-{self.rank}.txt").write_text("".join(traceback.format_exception(error)))
        return f"{who} {mine}: {first_line(error)}. The same command continues at the newest checkpoint."

    def _describe_silence(self, silent: list[int]) -> str:
        known = [f"last seen: rank {rank} in {self._places[rank]}" for rank in silent if rank in self._places]
        last_seen = f" ({'; '.join(known)})" if known else ""
        return f"Rank {' and '.join(map(str, silent))} no longer answers{last_seen}."


def _describe_raise(error: BaseException) -> str:
    """The innermost function of fastmpl that an error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(PACKAGE))]
    return f"{Path(frames[-1].filename).name}:{frames[-1].name}:{frames[-1].lineno}" if frames else "an unknown place"


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective raised this error because another rank ended or hangs."""
    words = ("peer", "imed out", "Connection reset", "Broken pipe", "ocket", "NCCL", "gloo", "store of rank 0")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200].rstrip(". ")
