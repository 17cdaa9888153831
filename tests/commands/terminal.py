"""What a user sees of five verbs on four kinds of terminal: `python -m tests.commands.terminal` writes the golden files.

Numbers that differ between machines and runs (times, speeds, losses, accuracies) and folders are replaced by marks.
"""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "transcripts"
PROGRAM = """
import sys
from fastmpl import cli
if __name__ == "__main__":
    for line in sys.argv[1:]:
        print(f"$ fastmpl {line}", flush=True)
        code = cli.main(line.split())
        print(f"({code})\\n" if code else "", flush=True)
"""
SHORT = "--run.steps 20 --run.evaluate_every 10 --teacher.width 16 --student.width 16"


class Kind(NamedTuple):
    """A kind of terminal: its columns, 0 for a pipe, and its locale."""

    columns: int
    locale: str = "C.UTF-8"


KINDS = {"piped": Kind(0), "80_columns": Kind(80), "40_columns": Kind(40), "c_locale": Kind(0, "C")}


def commands(name: str) -> list[str]:
    """The command lines; `name` is the run's."""
    return [
        f"train digits.toml --run.name {name} {SHORT}",
        f"status runs/{name}",
        f"predict runs/{name} été.png notes.txt",
        f"check digits.toml {SHORT}",
        f"check digits.toml {SHORT} --data.labels 5",
        f"ablate digits.toml {SHORT} --seeds 2 --jobs 1",
        "trian digits.toml",
    ]


def record(kind: str, place: Path) -> str:
    """What the commands print in `place`, which holds digits.toml and the pictures."""
    columns, locale = KINDS[kind]
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "TERM": "xterm", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PROGRAM, *commands(kind)]
    if not columns:
        done = subprocess.run(command, cwd=place, env=environment, stdout=-1, stderr=subprocess.STDOUT, check=True)
        return done.stdout.decode()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    running = subprocess.Popen(command, cwd=place, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # EIO: the other side is closed
        pass
    os.close(ours)
    assert running.wait() == 0
    return final_screen(written.decode())


def final_screen(written: str) -> str:
    """The lines on the screen at the end. What was overwritten is gone; a long line, which a terminal breaks, is whole."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\r\n\x1b]", written):
        if part == "\n":
            row += 1
            lines += [""] * (row - len(lines) + 1)
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b"):
            if part.endswith("A"):
                row = max(0, row - int(part[2:-1] or 1))
            elif part.endswith("K"):
                lines[row] = "" if part == "\x1b[2K" else lines[row][:column]
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
    return "\n".join(lines)


def normalise(text: str, place: Path) -> str:
    """`text` with marks for what differs between machines and runs, and without the lines that depend on the time."""
    text = text.replace(str(place), "PLACE").replace("\r", "")
    for pattern, mark in (
        (r"\n {8,}(?=\S)", " "),  # where a line is folded depends on its numbers and paths
        (r"process \d+ on \S+", "process # on HOST"),
        (r"\d+ (seconds|minutes) ago", "# seconds ago"),
        (r"[\d,.]+ images/s", "# images/s"),
        (r"[\d.]+ GiB free", "# GiB free"),
        (r"[+-]?\d+\.\d+(e[+-]?\d+)?", "#.#"),
        (r"\b\d+(:\d\d)+\b|\b\d+ s\b", "TIME"),
        (r"(━|╸|╺)+", "━━━"),
        (r" \| waits for data #.#%|^waits for data .*\n", ""),  # shown where a machine is busy
        (r"^\S+ \d+/\d+ \|.*\| time left .*\n", ""),  # a plain line before the last, where a run takes over ten seconds
        (r"(averaged )?student of step \d+", "STUDENT of step #"),  # the selected one
        (r" {2,}", "  "),
    ):
        text = re.sub(pattern, mark, text, flags=re.MULTILINE)
    kept = [line.rstrip() for line in text.splitlines() if not line.startswith("training  ") or "step" in line[:16]]
    return "\n".join(kept).strip() + "\n"


def make_place(place: Path) -> Path:
    """A folder with the configuration of the digits, a picture, and a file that is none."""
    import numpy as np
    from PIL import Image

    (place / "digits.toml").write_text((ROOT / "launch/configs/digits.toml").read_text())
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "été.png")
    (place / "notes.txt").write_text("notes")
    return place


def main() -> None:
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            place = make_place(Path(folder))
            (GOLDEN / f"{kind}.txt").write_text(normalise(record(kind, place), place), encoding="utf-8")
            print(GOLDEN / f"{kind}.txt", flush=True)


if __name__ == "__main__":
    main()
