"""What a save costs the loop, in time and in memory: `python -m benchmarks.bench_saving`.

Time: the demonstration is trained with its own interval between checkpoints, on one thread. The cost of a save is the
processor time of the training thread inside it, and of asking after each step whether it is written, as a share of the
same time of all steps, and as steps of median length; the time on the clock is beside it. Memory: a state of --parameters
numbers is saved in place and, as a run would choose, through the saver; the peak of the process is read from the kernel, in
a process of its own.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import Record, Row, save
from fastmpl.config import load
from fastmpl.distributed.ranks import ALONE
from fastmpl.run import checkpoint, trainer
from fastmpl.run.checkpoint import Checkpoint
from fastmpl.run.saver import Saver
from fastmpl.run.saving import Saving
from fastmpl.run.training import Training

DIGITS = Path(__file__).parents[1] / "launch/configs/digits.toml"
PIECES = 20  # tensors of the large state


class Stopwatch:
    """Measures the calls of a method on the thread that trains."""

    def __init__(self) -> None:
        self.processor: list[float] = []
        self.clock: list[float] = []

    def wrap(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, measured."""

        def measured(*arguments: Any, **options: Any) -> Any:
            processor, clock = time.thread_time(), time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self.processor.append(time.thread_time() - processor)
                self.clock.append(time.perf_counter() - clock)

        return measured


def measure_loop(steps: int) -> Row:
    """What the saves of a run of digits cost: all but the last, for which nothing is left to do beside it."""
    saves, asked, taken = Stopwatch(), Stopwatch(), Stopwatch()
    originals = Training._save, Saving.tell, Training.take_step
    with tempfile.TemporaryDirectory() as folder:
        config = load(DIGITS, {"run.output": folder, "run.steps": steps, "system.threads": 1})
        try:
            Training._save = saves.wrap(originals[0])  # type: ignore[method-assign]
            Saving.tell = asked.wrap(originals[1])  # type: ignore[method-assign]
            Training.take_step = taken.wrap(originals[2])  # type: ignore[method-assign]
            trainer.train(config, quiet=True, report=False)
        finally:
            Training._save, Saving.tell, Training.take_step = originals  # type: ignore[method-assign]
    step = statistics.median(taken.processor)
    beside = saves.processor[:-1]
    cost = sum(beside) + sum(asked.processor[:-1])
    return {
        "steps": len(taken.processor),
        "saves": len(beside),
        "step_seconds": step,
        "save_seconds": max(beside),
        "share": cost / (sum(taken.processor) + cost),
        "longest_in_steps": max(beside) / step,
        "longest_on_the_clock": max(saves.clock[:-1]),
    }


def measure_memory(parameters: int, how: str, folder: Path) -> Row:
    """The growth of the process's peak memory while it saves, in units of the state."""
    tensors = {f"weight{n}": torch.full((parameters // PIECES,), float(n)) for n in range(PIECES)}
    size = sum(tensor.nbytes for tensor in tensors.values())
    before = _restart_peak()
    made, sentences = Checkpoint(1, tensors, {}), list[str]()
    if how == "saver":
        saver = Saver(folder, ALONE, 1, 1, sentences.append)
        saver.begin(made, None)
        saved = saver.take(wait=True)
        assert saved is not None and saved.error is None
    else:
        checkpoint.save(folder, made)
    return {
        "how": how,
        "beside": how == "saver" and not sentences,
        "state_bytes": size,
        "grown": _peak() / size - before / size,
    }


def _restart_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Bytes of this process at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--parameters", type=int, default=500_000_000)
    parser.add_argument("--folder", type=Path, help="where the large state is written")
    parser.add_argument("--measure", choices=["in place", "saver"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        row = measure_memory(asked.parameters, asked.measure, asked.folder)
        print(row["beside"], row["state_bytes"], row["grown"])
        return
    torch.set_num_threads(1)
    loop = measure_loop(asked.steps)
    print(loop)
    save(Record("saving_time", "table", [loop], {"steps": asked.steps}))
    rows = list[Row]()
    for how in ("in place", "saver") if asked.parameters else ():
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            command = [sys.executable, "-m", "benchmarks.bench_saving", "--measure", how, "--folder", folder]
            found = subprocess.run(
                [*command, "--parameters", str(asked.parameters)], check=True, capture_output=True, text=True
            ).stdout.split()
        rows.append({"how": how, "beside": found[0] == "True", "state_bytes": int(found[1]), "grown": float(found[2])})
        print(rows[-1])
    if rows:
        save(Record("saving_memory", "table", rows, {"parameters": asked.parameters}))


if __name__ == "__main__":
    main()
