"""One group of rows, in this process: `python -m benchmarks.gpu.worker` is called by `benchmarks.gpu.supervision`.

Says on the descriptor `--report`, one JSON object a line, which cases there are, when each begins, and its row. A case may
end this process: what has been said stays, and the caller starts another process at the next case.
"""

import argparse
import ctypes
import faulthandler
import gc
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.environment import environment
from benchmarks.gpu.cases import OURS, Case, Cases, Group, MissingError, Setting
from benchmarks.gpu.groups import group_named
from benchmarks.records import Row

POISONED: Final = 70  # exit code: the device answers nothing more to this process
Tell = Callable[[dict[str, Any]], None]
_PR_SET_PDEATHSIG: Final = 1


class Verdict(NamedTuple):
    """A case's row, and whether this process can run another case."""

    row: Row
    is_usable: bool


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become words."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def explain(error: BaseException) -> str:
    """The first line of an error, with its kind where it says nothing else."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _is_absent(error: ImportError) -> bool:
    return (error.name or "").split(".")[0] not in OURS


def _settle_device() -> str:
    """Waits for the device, so that an error is this case's. Gives the error, "" where there is none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()  # the next case finds the whole memory
    except Exception as error:  # whatever it is, it is this row's failure
        return explain(error)
    return ""


def judge(case: Case) -> Verdict:
    """Runs one case. Every exception becomes a row."""
    began = time.perf_counter()
    columns: Row = {}
    why = ""
    try:
        columns = dict(case.run())
        passed = columns.pop("passed", None)
        status = "measured" if passed is None else "passed" if passed else "failed"
        why = str(columns.pop("why", ""))
    except MissingError as error:
        status, why = "missing", str(error)
    except Exception as error:
        status, why = "failed", explain(error)
        if isinstance(error, ImportError) and _is_absent(error):
            status, why = "missing", f"needs the package {error.name}"
        else:
            traceback.print_exc()
    if broken := _settle_device():
        status, why = "failed", why or broken
    row: Row = {"what": case.what, "status": status, "seconds": round(time.perf_counter() - began, 3), "why": why}
    return Verdict({**row, **{name: _finite(value) for name, value in columns.items()}}, not broken)


def cases_of(group: Group, setting: Setting) -> Cases:
    """The group's cases; where it cannot even be built, one case that says why."""
    try:
        cases: Cases = import_module(group.module).cases(setting)
    except Exception as error:
        failure = error

        def fail() -> Row:
            raise failure

        return [Case("all rows", fail)]
    return cases


def run_cases(cases: Sequence[Case], first: int, tell: Tell) -> int:
    """Runs the cases from number `first` on. Gives the exit code: 0, or POISONED where a case broke the device."""
    tell({"event": "cases", "names": [case.what for case in cases], "environment": environment()})
    for number in range(first, len(cases)):
        tell({"event": "begin", "number": number, "seconds": cases[number].seconds})
        verdict = judge(cases[number])
        tell({"event": "row", "number": number, "row": verdict.row})
        if not verdict.is_usable:
            return POISONED
    tell({"event": "end"})
    return 0


@contextmanager
def _report_rows(descriptor: int) -> Iterator[Tell]:
    with os.fdopen(descriptor, "w", buffering=1) as report:

        def tell(event: dict[str, Any]) -> None:
            report.write(json.dumps(event) + "\n")

        yield tell


def main(arguments: Sequence[str] | None = None, cases_of: Callable[[Group, Setting], Cases] = cases_of) -> int:
    """`cases_of`: gives a group's cases; tests plant faults with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--group", required=True)
    parser.add_argument("--device", choices=("cuda", "imitated"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--report", type=int, required=True)
    asked = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a hung kernel must not outlive the caller
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the caller asks where a hung case stands
    with _report_rows(asked.report) as tell:
        return run_cases(cases_of(group_named(asked.group), Setting(asked.device, asked.out)), asked.first, tell)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # after a broken device the libraries' own clean-up would hang or abort
