"""What a command costs before its work begins: `python -m benchmarks.bench_start`.

CPU seconds and memory of fresh processes on one thread, with the files in the machine's cache: importing torch alone, then
`fastmpl status` and `fastmpl evaluate` of a finished run, and `fastmpl train launch/configs/digits.toml` until its first
step, until its thirteenth, which is the first that runs from a tape, and to the end of a run of 13 steps with its report.
The questions take turns. About two minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from statistics import median
from typing import Final, NamedTuple

from benchmarks.environment import ROOT
from benchmarks.records import Record, Row, save

STEPS: Final = 13
TRAIN: Final = """
import os
from fastmpl import Callback, train
def end(done):
    if done.step == {step}:
        os._exit(0)
train("launch/configs/digits.toml", {{"run.output": {folder!r}, "run.name": {name!r}, "run.steps": {steps}}},
      resume="never", quiet=True, callbacks=[Callback(on_step=end)])
"""


class Cost(NamedTuple):
    """Of one process."""

    cpu: float  # seconds
    peak: int  # bytes; no less than those of the process that started it, which imports little


def run_once(program: list[str]) -> Cost:
    """Runs it with one thread. Raises CalledProcessError where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, program)
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def train(folder: str, name: str, last: int) -> list[str]:
    """A run that ends abruptly after the step `last`; at its end where that is 0."""
    return [sys.executable, "-c", TRAIN.format(step=last, steps=STEPS, folder=folder, name=name)]


def programs(folder: str) -> Mapping[str, list[str]]:
    """By question; the run `done` in `folder` is finished."""
    fastmpl = [sys.executable, "-m", "fastmpl"]
    return {
        "import torch": [sys.executable, "-c", "import torch"],
        "fastmpl status": [*fastmpl, "status", f"{folder}/done"],
        "fastmpl evaluate": [*fastmpl, "evaluate", f"{folder}/done"],
        "train, to the first step": train(folder, "first", last=1),
        "train, to the first step from a tape": train(folder, "taped", last=STEPS),
        "train, to the end, with its report": train(folder, "whole", last=0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_once(train(folder, "done", last=0))
        found: dict[str, list[Cost]] = {name: [] for name in programs(folder)}
        for _ in range(asked.rounds):
            for name, each in programs(folder).items():
                found[name].append(run_once(each))
    rows: list[Row] = []
    for name, costs in found.items():
        seconds = sorted(cost.cpu for cost in costs)
        peak = median(cost.peak for cost in costs)
        rows.append(
            {
                "until": name,
                "CPU seconds": f"{median(seconds):.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f})",
                "peak MB": f"{peak / 1e6:.0f}",
            }
        )
        print("  ".join(f"{value:>40}" for value in rows[-1].values()), flush=True)
    print(save(Record("start", "table", rows, {"rounds": asked.rounds})))


if __name__ == "__main__":
    main()
