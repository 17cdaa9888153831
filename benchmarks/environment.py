"""Where a number was measured: hardware, versions, commit. Without it a number is not a record.

torch is imported only where it is asked, so that a process which must not start a GPU can use the rest.
"""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMIT_VARIABLE = "FASTMPL_COMMIT"  # the commit, where the code was copied to a machine without its repository
# An allocator that returns nothing to the system: where a page fault costs more than a batch norm, fresh memory is
# what would be timed. A training loop reuses its memory from the second step on.
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**28)}


def run_git(*arguments: str) -> str:
    """The output of git in the repository; "" where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def commit() -> str:
    """The commit of the code that runs; without a repository, FASTMPL_COMMIT of the environment, or "unknown"."""
    return run_git("rev-parse", "HEAD") or os.environ.get(COMMIT_VARIABLE, "") or "unknown"


def _dirty() -> bool | str:
    """Whether the files differ from the commit, records and figures aside; "unknown" without a repository."""
    if not run_git("rev-parse", "HEAD"):
        return "unknown"
    return bool(run_git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!docs/figures"))


def command() -> str:
    """The command line of this process, as one would type it in the repository's root."""
    arguments = [a.removeprefix(f"{ROOT}{os.sep}") for a in sys.orig_argv[1:]]
    return shlex.join(["python", *arguments])


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def environment() -> dict[str, str | int | float | bool]:
    """What a reader needs to judge or repeat a measurement. `dirty`: the commit is not all of the code that ran."""
    import torch

    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),  # of the last minute; near 0 on a quiet machine, before the measurement
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dirty": _dirty(),
    }


def keep_memory(module: str) -> None:
    """Starts this program again with an allocator that returns nothing to the system."""
    if any(name not in os.environ for name in HEAP):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, **HEAP})
