"""Runs with faults drawn by a seed, each continued to its end and compared with a run that nothing disturbed.

`python -m tests.faults.soak --count 100 --seed 0` injects 100 faults of all kinds; `--kinds kill --count 200 --ranks 2`
kills ranks of two, alone and together. A line says each fault, the last one what was counted; exit code 1 if anything is
not as it must be: a step is lost that a save had completed, the same command is refused, a checkpoint cannot be loaded, or
the weights at the end differ in a bit.
"""

import argparse
import io
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch

from fastmpl.config import Config
from fastmpl.distributed import process_group
from fastmpl.distributed.ranks import Ranks
from fastmpl.errors import FastMPLError, StorageError
from fastmpl.run import checkpoint, trainer
from fastmpl.run.checkpoint_files import TENSORS, verify
from tests.ranks.runs import Job
from tests.ranks.spawned import SLOW_IMPORTS
from tests.run.short_runs import short_config

STEPS, EVERY, KEEP = 30, 3, 4
SECONDS = 120  # until an attempt that does not end counts as a hang
START = 60  # seconds that a rank waits at its start for one that was killed before; a launcher would not let it wait


class Attempt(NamedTuple):
    """One attempt of one rank, as a process of its own."""

    config: Config
    rank: int
    size: int

    def __call__(self) -> None:
        if self.size == 1:
            for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
                os.environ.pop(name, None)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(_attempt(self.config, Ranks(self.rank, self.size)))


def _attempt(config: Config, ranks: Ranks) -> int:
    torch.set_num_threads(1)
    process_group.START = START  # type: ignore[misc]
    if ranks.size > 1:
        return Job(config)(ranks).code
    try:
        with redirect_stdout(io.StringIO()):
            trainer.train(config, quiet=True, report=False)
    except FastMPLError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _send(number: int) -> Callable[[Sequence[BaseProcess], Path, random.Random], None]:
    def act(processes: Sequence[BaseProcess], folder: Path, draw: random.Random) -> None:
        whole = len(processes) > 1 and number == signal.SIGKILL and draw.random() < 0.5
        for process in processes if whole else [draw.choice(processes)]:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)

    return act


def _damage(
    change: Callable[[Path, random.Random], None],
) -> Callable[[Sequence[BaseProcess], Path, random.Random], None]:
    """Kills all ranks, then damages the newest checkpoint that is not damaged yet: the one before is used."""

    def act(processes: Sequence[BaseProcess], folder: Path, draw: random.Random) -> None:
        for process in processes:
            process.kill()
            process.join()
        paths = [folder / f"checkpoints/step-{step}" for step in checkpoint.steps(folder / "checkpoints")]
        whole = [path for path in paths if _is_whole(path)]
        if len(whole) > 1:  # a run whose only checkpoint is damaged starts over
            change(whole[0], draw)

    return act


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except StorageError:
        return False
    return True


def _truncate(path: Path, draw: random.Random) -> None:
    data = (path / TENSORS).read_bytes()
    (path / TENSORS).write_bytes(data[: draw.randrange(len(data))])


def _flip(path: Path, draw: random.Random) -> None:
    file = draw.choice(sorted(path.iterdir()))
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def _remove(path: Path, draw: random.Random) -> None:
    draw.choice(sorted(path.iterdir())).unlink()


def _leave_draft(path: Path, draw: random.Random) -> None:
    shutil.copytree(path, path.with_name(f"step-{STEPS * 2}.tmp-1"), dirs_exist_ok=True)


def _forget_status(path: Path, draw: random.Random) -> None:
    (path.parents[1] / "STATUS.json").unlink(missing_ok=True)


def _cut_metrics(path: Path, draw: random.Random) -> None:
    file = path.parents[1] / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[: -draw.randrange(1, 60)])


FAULTS = {
    "kill": _send(signal.SIGKILL),
    "TERM": _send(signal.SIGTERM),
    "USR1": _send(signal.SIGUSR1),
    "HUP": _send(signal.SIGHUP),
    "INT": _send(signal.SIGINT),
    "truncated": _damage(_truncate),
    "flipped": _damage(_flip),
    "removed": _damage(_remove),
    "draft left": _damage(_leave_draft),
    "status gone": _damage(_forget_status),
    "metrics cut": _damage(_cut_metrics),
}
DAMAGING = ("truncated", "flipped", "removed")


class Soak:
    """Attempts of one run after another, on `ranks` processes each."""

    def __init__(self, folder: Path, ranks: int, draw: random.Random) -> None:
        self.folder, self.ranks, self.draw = folder, ranks, draw
        self.failures: list[str] = []
        self.counts: dict[str, int] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*SLOW_IMPORTS, "tests.ranks.runs", "tests.faults.soak"])

    def config(self, name: str) -> Config:
        every = {"run__checkpoint_every": EVERY, "run__keep": KEEP, "run__steps": STEPS, "run__log_every": 4}
        return short_config(self.folder / name, run__evaluate_every=STEPS, system__timeout=20, **every)

    def start(self, name: str) -> list[BaseProcess]:
        config = self.config(name)
        processes: list[BaseProcess] = [
            self._context.Process(target=Attempt(config, rank, self.ranks)) for rank in range(self.ranks)
        ]
        for process in processes:
            process.start()
        return processes

    def end(self, processes: Sequence[BaseProcess], what: str) -> list[int]:
        """Waits for all ranks; one that does not end is killed and noted."""
        until = time.monotonic() + SECONDS
        for process in processes:
            process.join(max(until - time.monotonic(), 0.1))
            if process.is_alive():
                self.failures.append(f"{what}: a rank did not end in {SECONDS} s")
                process.kill()
                process.join()
        return [process.exitcode or 0 for process in processes]

    def uninterrupted(self) -> dict[str, torch.Tensor]:
        codes = self.end(self.start("whole"), "uninterrupted")
        assert not any(codes), codes
        return self.last("whole")

    def last(self, name: str) -> dict[str, torch.Tensor]:
        path = self.folder / name / f"small/checkpoints/step-{STEPS}"
        return checkpoint.read(path, Ranks(0, self.ranks)).tensors

    def disturb(self, name: str, kind: str, seconds: float) -> bool:
        """An attempt with one fault at a random moment of `seconds`; whether the run has ended before it."""
        run = self.folder / name / "small"
        processes = self.start(name)
        until = time.monotonic() + self.draw.uniform(0, seconds)
        while time.monotonic() < until and any(process.is_alive() for process in processes):
            time.sleep(0.02)
        if not any(process.is_alive() for process in processes):
            codes = self.end(processes, kind)
            if any(codes):
                self.failures.append(f"{kind}: the attempt before the fault ended with {codes}")
            return not any(codes)
        before = self.newest_valid(run)
        FAULTS[kind](processes, run, self.draw)
        codes = self.end(processes, kind)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        saved = self.newest_valid(run)
        print(f"{sum(self.counts.values()):4} {kind:12} saved {before} -> {saved}, ended with {codes}", flush=True)
        if kind not in DAMAGING and saved < before:
            self.failures.append(f"{kind}: step {before} was saved and {saved} is left")
        return False

    def newest_valid(self, run: Path) -> int:
        """The step of the newest checkpoint that can be loaded; 0 if there is none."""
        found = checkpoint.read_newest(run / "checkpoints", lambda sentence: None)
        return 0 if found is None else found.step

    def compare(self, name: str, expected: dict[str, torch.Tensor]) -> None:
        found = self.last(name)
        differing = [key for key, value in expected.items() if not torch.equal(found[key], value)]
        if differing or found.keys() != expected.keys():
            self.failures.append(f"{name}: {len(differing)} tensors differ from the uninterrupted run, {differing[:1]}")


def soak(count: int, seed: int, ranks: int, kinds: Sequence[str], folder: Path) -> list[str]:
    """Injects `count` faults and gives what was not as it must be."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # for the ranks: as the command line does
    draw = random.Random(seed)
    soaked = Soak(folder, ranks, draw)
    began = time.monotonic()
    soaked.end(soaked.start("warm"), "the first attempt")  # whose processes import torch
    warm = time.monotonic()
    expected = soaked.uninterrupted()
    seconds = time.monotonic() - warm
    run = 0
    while sum(soaked.counts.values()) < count and len(soaked.failures) < 5:
        run += 1
        for _ in range(6):  # then the run is left to end
            if sum(soaked.counts.values()) < count and soaked.disturb(f"run-{run}", draw.choice(list(kinds)), seconds):
                break
        codes = soaked.end(soaked.start(f"run-{run}"), "the last attempt")
        if any(codes):
            soaked.failures.append(f"run-{run}: the same command ends with {codes}")
        else:
            soaked.compare(f"run-{run}", expected)
            shutil.rmtree(folder / f"run-{run}")
    number = sum(soaked.counts.values())
    print(f"{number} faults in {run} runs of {ranks} ranks, {time.monotonic() - began:.0f} s: {soaked.counts}")
    return soaked.failures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        failures = soak(asked.count, asked.seed, asked.ranks, asked.kinds, Path(folder))
    for failure in failures:
        print(f"FAILED {failure}")
    print("every continued run equals the uninterrupted one" if not failures else f"{len(failures)} failures")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
