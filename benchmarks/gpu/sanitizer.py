"""compute-sanitizer over every kernel once: addresses, races, uninitialised memory and barriers."""

import re
import shutil
import subprocess
import sys
from functools import partial
from typing import Final

from benchmarks.gpu.cases import Case, Cases, MissingError, Setting
from benchmarks.records import Row

TOOLS: Final = ("memcheck", "racecheck", "synccheck", "initcheck")
SECONDS: Final = 80.0
COMMAND: Final = (sys.executable, "-m", "benchmarks.gpu.every_kernel")


def parse_errors(said: str) -> int | None:
    """The number in the tool's last summary, or None where it gave none."""
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)", said)
    return int(found[-1]) if found else None


def check_with(tool: str, setting: Setting) -> Row:
    path = shutil.which("compute-sanitizer")
    if path is None:
        raise MissingError("compute-sanitizer is not on the PATH")
    if setting.is_imitated:
        raise MissingError("needs a GPU")
    command = [path, "--tool", tool, *COMMAND, "--device", setting.kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS - 5, check=False)
    said = done.stdout + done.stderr
    (setting.out / f"sanitizer_{tool}.txt").write_text(said)
    if "Device not supported" in said or "not supported on this" in said:
        raise MissingError("compute-sanitizer does not support this device")
    errors = parse_errors(said)
    if errors is None:
        return {"passed": False, "why": f"no summary; exit code {done.returncode}"}
    return {"passed": errors == 0, "errors": errors}


def run_plain(setting: Setting) -> Row:
    """The same program without the tool: what it says is then the tool's."""
    done = subprocess.run([*COMMAND, "--device", setting.kind], capture_output=True, text=True, timeout=60, check=False)
    print(done.stderr)
    said = (done.stdout.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return {"passed": done.returncode == 0, "said": said}


def cases(setting: Setting) -> Cases:
    return [
        Case("every kernel, without the tool", partial(run_plain, setting)),
        *(Case(tool, partial(check_with, tool, setting), SECONDS) for tool in TOOLS),
    ]
