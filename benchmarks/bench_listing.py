"""How soon a run over 1.28 million files can begin, and in how much memory: `python -m benchmarks.bench_listing`.

A tree of ImageNet's shape is made once in --folder (empty files: none is opened before training), a tenth of it labelled
in 1,000 class folders and the rest in one folder, and lists of the same files beside it. A fresh process for each source
then imports the trainer, builds the data set (listing, split, fingerprint), and draws the order of two epochs. Memory is
that of the whole process as the kernel counts it (VmHWM), and the part of it that is not a page of a library's file,
which processes share (RssAnon); the first three rows are what imports alone take.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.records import Record, Row, save

CLASSES, LABELLED, BATCH = 1000, 0.1, 448
SOURCES = ("folder", "file_list")


def make_tree(folder: Path, files: int) -> Path:
    """The tree and its lists, whole or made anew."""
    done = folder / f"whole-{files}"
    if done.exists():
        return folder
    names = [f"n{1440764 + 2773 * number:08d}" for number in range(CLASSES)]
    each = int(files * LABELLED) // CLASSES
    wanted = [(f"labelled/{name}", name, [f"{name}_{37 * k}.JPEG" for k in range(each)]) for name in names]
    rest = files - each * CLASSES
    wanted.append(("unlabelled", "", [f"{names[k % CLASSES]}_{k}.JPEG" for k in range(rest)]))
    (folder / "lists").mkdir(parents=True, exist_ok=True)
    with (folder / "lists/labelled.txt").open("w") as labelled, (folder / "lists/unlabelled.txt").open("w") as others:
        for below, name, held in wanted:
            (folder / below).mkdir(parents=True, exist_ok=True)
            for file in held:
                os.close(os.open(folder / below / file, os.O_CREAT))
                line = f"../{below}/{file}"
                (labelled if name else others).write(f"{line}\t{name}\n" if name else f"{line}\n")
    done.touch()
    return folder


def read_memory() -> dict[str, float]:
    """Megabytes of this process: the most there were, and those that are its own now."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "peak MB": int(lines["VmHWM"].split()[0]) / 1000,
        "own MB": int(lines["RssAnon"].split()[0]) / 1000,
    }


def read_age() -> float:
    """Seconds since this process began."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def measure_steps(source: str, root: str) -> list[Row]:
    """The steps from nothing to a second epoch's order, in this process."""
    rows: list[Row] = []

    def note(step: str) -> None:
        rows.append(
            {"source": source, "step": step, "wall s": read_age(), "CPU s": time.process_time(), **read_memory()}
        )

    import torch  # noqa: F401

    note("import torch")
    import nvidia.dali  # noqa: F401

    note("and DALI")
    import fastmpl.data.streaming.encoded_pipeline
    import fastmpl.run.trainer  # noqa: F401
    from fastmpl.config.load import build as config
    from fastmpl.data.build import build
    from fastmpl.data.draws import StreamName
    from fastmpl.data.sampler import Sampler

    note("and fastmpl")
    keys = {"data.source": source, "data.root": root, "data.labels": 0, "data.validation": CLASSES}
    keys |= {"data.decode": "always"} if source == "folder" else {}
    data = build(config(keys, dict.fromkeys(keys, "benchmark")).data, seed=0)
    note("data set")
    sampler = Sampler(data.split.unlabelled, BATCH, StreamName.UNLABELLED, 0)
    sampler.samples(0)
    note("an epoch's order")
    sampler.samples(len(data.split.unlabelled) // BATCH + 1)
    note("the next epoch's")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_281_167)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_listing"))
    parser.add_argument("--measure", choices=SOURCES, help="measure in this process, for the call without it")
    asked = parser.parse_args()
    if asked.measure:
        root = asked.folder if asked.measure == "folder" else asked.folder / "lists"
        print(json.dumps(measure_steps(asked.measure, str(root))))
        return
    make_tree(asked.folder, asked.files)
    rows: list[Row] = []
    for source in SOURCES:
        command = [sys.executable, "-m", "benchmarks.bench_listing", "--folder", str(asked.folder), "--measure", source]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        rows += [{key: v if isinstance(v, str) else f"{v:.1f}" for key, v in row.items()} for row in found]
    for row in rows:
        print("  ".join(f"{value:>17}" for value in row.values()))
    print(save(Record("listing", "table", rows, {"files": asked.files, "classes": CLASSES})))


if __name__ == "__main__":
    main()
