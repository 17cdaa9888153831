"""What a GPU machine is asked, once it can be reached: `python3 -m benchmarks.gpu_check` (`make gpu-check`).

    python3 -m benchmarks.gpu_check --part correct|speed --seconds 560 --out DIR

`correct` asks whether every kernel, graph and stream does what the reference does; `speed` measures. It needs torch and
no network; a row that needs another package says so (docs/gpu.md lists them). Each group of rows runs in a process of its
own with a deadline, and DIR/gpu_check_<part>.json is written again after every row, so that nothing a GPU does costs the
rows that came before. With `--group` the record keeps the rows of all other groups. `--device imitated` runs the same rows,
small, on the CPU: it tests this program, not a GPU.

The last line is the verdict. Exit code 0 where no row failed, 1 where one did, 3 where torch or a GPU is missing, 4 where
none failed and the time ended before some.
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

from benchmarks.environment import commit
from benchmarks.gpu.cases import Device, Group, Part, Status
from benchmarks.gpu.groups import GROUPS
from benchmarks.gpu.supervision import NOT_REACHED, WORKER, Attempt, GroupRun
from benchmarks.records import RESULTS, Record, RecordError, Row, Scalar, load, save

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


def _record_name(part: Part, device: Device) -> str:
    return f"{'gpu_check' if device == 'cuda' else 'gpu_check_imitated'}_{part}"


def _kept_rows(part: Part, asked: Sequence[Group], attempt: Attempt) -> list[Row]:
    """The rows that an earlier call of the same commit has found for groups which are not asked now."""
    try:
        earlier = load(_record_name(part, attempt.device), attempt.out)
    except RecordError:
        return []
    names = {group.name for group in asked}
    return [row for row in earlier.rows if row["group"] not in names] if earlier.commit == commit() else []


def _share(group: Group, left: Sequence[Group], seconds: float) -> float:
    """The time of a group: its own, and more where the groups that are left leave some of the `seconds`."""
    share = seconds * group.seconds / sum(each.seconds for each in left)
    return max(min(max(group.seconds, share), seconds), 0.0)


def check_part(
    part: Part, groups: Sequence[Group], attempt: Attempt, until: float, kept: Sequence[Row] = ()
) -> Iterator[Row]:
    """The rows of a part as they come, saved after each behind those that are kept. until: on time.monotonic's clock."""
    asked: dict[str, Scalar] = {
        "part": part,
        "seconds": round(until - time.monotonic(), 1),
        "device": attempt.device,
    }
    record = Record(_record_name(part, attempt.device), "table", list(kept), asked, environment={})
    for number, group in enumerate(groups):
        run = GroupRun(group, attempt, _share(group, groups[number:], until - time.monotonic()), until)
        for row in run.rows():
            known = record.environment or run.environment
            record = dataclasses.replace(record, rows=[*record.rows, {"part": part, **row}], environment=known)
            save(record, attempt.out)
            yield record.rows[-1]


def give_verdict(rows: Sequence[Row], device: Device) -> tuple[str, int]:
    """What the rows of `correct` say of the device, in a line, and the exit code."""

    def groups(found: Sequence[Row]) -> list[str]:
        return list(dict.fromkeys(str(row["group"]) for row in found))

    failed = [row for row in rows if row["status"] == "failed"]
    late = [row for row in rows if row["status"] == "missing" and NOT_REACHED in str(row["why"])]
    answered = groups([row for row in rows if row["status"] != "missing"])
    what = "This GPU" if device == "cuda" else "The imitated GPU"
    if failed:
        return f"{what} is not fit: {len(failed)} rows failed ({', '.join(groups(failed))}).", 1
    if late:
        again = " ".join(f'--group "{name}"' for name in groups(late))
        return f"Undecided: the time ended before {len(late)} rows. Ask for them alone, with the same --out: {again}", 4
    silent = [name for name in groups(rows) if name not in answered]
    needs = f" Not asked: {', '.join(silent)}; their rows say what they need." if silent else ""
    return f"{what} is fit, as far as these rows ask.{needs}", 0


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
    every: list[Row] = []
    for part in parts:
        groups = [group for group in GROUPS[part] if not asked.group or group.name in asked.group]
        kept = _kept_rows(part, groups, attempt) if asked.group else []
        every += kept
        for row in check_part(part, groups, attempt, until, kept):
            print(_describe(row), flush=True)
            found[str(row["status"])] += 1
            every.append(row)
    print(", ".join(f"{found[status]} {status}" for status in get_args(Status)) + f"; records in {asked.out}.")
    verdict, code = give_verdict(every, asked.device)
    print(verdict)
    return code


if __name__ == "__main__":
    sys.exit(main())
