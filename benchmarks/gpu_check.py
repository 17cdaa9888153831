"""What a GPU machine is asked, once it can be reached: `python3 -m benchmarks.gpu_check` (`make gpu-check`).

    python3 -m benchmarks.gpu_check --part correct|speed --seconds 560 --out DIR

`correct` asks whether every kernel, graph and stream does what the reference does; `speed` measures. It needs torch and
no network; a row that needs another package says so (docs/gpu.md lists them). Each group of rows runs in a process of its
own with a deadline, and DIR/gpu_check_<part>.json is written again after every row, so that nothing a GPU does costs the
rows that came before. `--device imitated` runs the same rows, small, on the CPU: it tests this program, not a GPU.

Exit code 0 where no row failed, 1 where one did, 3 where torch or a GPU is missing.
"""

import argparse
import dataclasses
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, get_args

from benchmarks.gpu.cases import Device, Group, Part, Status
from benchmarks.gpu.groups import GROUPS
from benchmarks.gpu.supervision import WORKER, Attempt, GroupRun
from benchmarks.records import RESULTS, Record, Row, Scalar, save

_PROBE: Final = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)"
_ABSENT: Final = {
    1: "gpu-check needs torch, and this Python has none: docs/gpu.md lists the packages.",
    3: "gpu-check needs a CUDA device, and torch finds none here: run it on a machine with an NVIDIA GPU.",
}


def _missing_device(device: Device) -> str:
    """Why nothing can be asked of this machine; "" where it can. torch is asked in a process of its own."""
    if device == "imitated":
        return ""
    code = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=120, check=False).returncode
    return "" if code == 0 else _ABSENT.get(code, f"gpu-check cannot ask torch for a GPU: it ended with {code}.")


def _describe(row: Row) -> str:
    """One line for the terminal."""
    numbers = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if name not in ("part", "group", "what", "status", "seconds", "why") and not isinstance(value, list)
    ]
    words = [str(row["why"])] if row["why"] else []
    return f"{row['status']:8} {row['group']}: {row['what']}  {', '.join(words + numbers)}".rstrip()


def check_part(part: Part, groups: Sequence[Group], attempt: Attempt, until: float) -> Iterator[Row]:
    """The rows of a part as they come, saved after each. until: on time.monotonic's clock."""
    seconds = round(until - time.monotonic(), 1)
    prefix = "gpu_check" if attempt.device == "cuda" else "gpu_check_imitated"
    asked: dict[str, Scalar] = {"part": part, "seconds": seconds, "device": attempt.device}
    record = Record(f"{prefix}_{part}", "table", [], asked, environment={})
    for group in groups:
        run = GroupRun(group, attempt, max(min(group.seconds, until - time.monotonic()), 0.0))
        for row in run.rows():
            known = record.environment or run.environment
            record = dataclasses.replace(record, rows=[*record.rows, {"part": part, **row}], environment=known)
            save(record, attempt.out)
            yield record.rows[-1]


def main(arguments: Sequence[str] | None = None, worker: Sequence[str] = WORKER) -> int:
    """`worker`: Python's arguments for the process of a group; tests plant faults with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=get_args(Part), help="default: both, one after the other")
    parser.add_argument("--seconds", type=float, default=560.0, help="for all that is asked (default 560)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for records, logs and traces")
    parser.add_argument("--device", choices=get_args(Device), default="cuda")
    parser.add_argument("--group", action="append", help="only this group of rows; may be given several times")
    asked = parser.parse_args(arguments)
    parts: tuple[Part, ...] = (asked.part,) if asked.part else get_args(Part)
    known = {group.name for part in parts for group in GROUPS[part]}
    if unknown := set(asked.group or ()) - known:
        parser.error(f"--group {sorted(unknown)[0]!r} is none of: {', '.join(sorted(known))}")
    until = time.monotonic() + asked.seconds
    if absent := _missing_device(asked.device):
        print(absent)
        return 3
    asked.out.mkdir(parents=True, exist_ok=True)
    attempt = Attempt(asked.device, asked.out.resolve(), worker)
    found: Counter[str] = Counter()
    for part in parts:
        groups = [group for group in GROUPS[part] if not asked.group or group.name in asked.group]
        for row in check_part(part, groups, attempt, until):
            print(_describe(row), flush=True)
            found[str(row["status"])] += 1
    print(", ".join(f"{found[status]} {status}" for status in get_args(Status)) + f"; records in {asked.out}.")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
