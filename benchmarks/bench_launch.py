"""How a job on several ranks starts and ends, many times in a row: `python -m benchmarks.bench_launch [--engine zero]`.

Each run is the launcher's own command on launch/configs/digits.toml. Reported: seconds from the command to the first
step, the exit code, the run's own last word, and the processes it left. Fails where a run did not end well. Some 25
seconds a run on two quiet cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.environment import ROOT
from benchmarks.records import Record, Row, save


class Launch(NamedTuple):
    """One run."""

    seconds: float  # until its first step was taken
    code: int
    state: str
    left: int  # processes

    @property
    def is_good(self) -> bool:
        return self.code == 0 and self.state == "done" and not self.left


def launch_run(engine: str, stage: int, ranks: int, steps: int) -> Launch:
    """`deepspeed --num_gpus N launch/train.py launch/configs/digits.toml` from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "one"
        options = {"run.output": folder, "run.name": "one", "run.steps": steps, "run.log_every": 1}
        options |= {"system.engine": engine, "system.zero_stage": stage}
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)]
        command += ["launch/train.py", "launch/configs/digits.toml"]
        command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
        environment = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        start, first = time.monotonic(), 0.0
        with (run.parent / "output").open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
            while process.poll() is None:
                if not first and _has_trained(run):
                    first = time.monotonic() - start
                time.sleep(0.05)
        status = run / "STATUS.json"
        state = str(json.loads(status.read_text())["state"]) if status.is_file() else "none"
        return Launch(first, process.returncode, state, count_processes_of(folder))


def _has_trained(run: Path) -> bool:
    path = run / "metrics.jsonl"
    return path.is_file() and path.stat().st_size > 0


def count_processes_of(folder: str) -> int:
    """How many processes name that folder in their command line."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += folder.encode() in path.read_bytes()
        except OSError:
            continue
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--engine", choices=["plain", "zero"], default="plain")
    parser.add_argument("--stage", type=int, default=2)
    asked = parser.parse_args()
    runs = []
    for number in range(asked.runs):
        runs.append(launch_run(asked.engine, asked.stage, asked.ranks, asked.steps))
        print(number + 1, runs[-1], flush=True)
    seconds = sorted(run.seconds for run in runs)
    row: Row = {
        "engine": asked.engine if asked.engine == "plain" else f"zero {asked.stage}",
        "runs": len(runs),
        "ended well": sum(run.is_good for run in runs),
        "seconds to the first step": f"{seconds[len(seconds) // 2]:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})",
        "processes left": sum(run.left for run in runs),
    }
    print(save(Record(f"launch_{asked.engine}", "table", [row], {"ranks": asked.ranks, "steps": asked.steps})))
    return 0 if all(run.is_good for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
