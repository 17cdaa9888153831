"""A worker of gpu_check with faults planted before each group's own cases; FASTMPL_PLANTED names them, with commas."""

import ctypes
import os
import time
from collections.abc import Callable

from benchmarks.gpu import worker
from benchmarks.gpu.cases import Case, Cases, Group, Setting
from benchmarks.records import Row

VARIABLE = "FASTMPL_PLANTED"
KEPT = 2  # of a group's own cases


def crash() -> Row:
    os.abort()


def hang() -> Row:
    time.sleep(600)
    return {}


def read_nowhere() -> Row:
    ctypes.memset(0, 1, 1)
    return {}


def leave() -> Row:
    os._exit(9)


def fail() -> Row:
    raise RuntimeError("planted\nwith a second line")


FAULTS: dict[str, Callable[[], Row]] = {
    "crash": crash,
    "hang": hang,
    "illegal access": read_nowhere,
    "exit": leave,
    "exception": fail,
}


def cases_with_fault(group: Group, setting: Setting) -> Cases:
    planted = [Case(f"planted {name}", FAULTS[name], 1.0) for name in os.environ[VARIABLE].split(",")]
    return [*planted, *worker.cases_of(group, setting)[:KEPT]]


if __name__ == "__main__":
    os._exit(worker.main(cases_of=cases_with_fault))
