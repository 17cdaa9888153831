"""The time of a step of Meta Pseudo Labels on stored features, data included: `python -m benchmarks.bench_features`.

Teacher and student are linear heads on 384 features and 10 classes, B = 64, U = 448, two stored views of each image, one
thread; the consistency loss is on. `--total 2000` times so many exact steps in a row in their place, a whole short run.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import ROOT, keep_memory
from benchmarks.harness import compare
from benchmarks.records import save
from fastmpl.config import load
from fastmpl.data.build import build as build_data
from fastmpl.data.dataset import digest_of
from fastmpl.data.sources import digits
from fastmpl.data.stores.feature_writer import FeatureWriter
from fastmpl.data.stores.features import FeaturePlan
from fastmpl.run.build import assemble
from fastmpl.run.graph_choice import choose_execution

CONFIG = ROOT / "launch" / "configs" / "digits.toml"
FEATURES, VIEWS = 384, 2
CPU = torch.device("cpu")


def write_store(folder: Path) -> None:
    """Noise as the features of digits: a step's cost does not depend on them."""
    arrays, rng = digits(""), np.random.default_rng(0)
    images = digest_of(arrays.train_images)
    plan = FeaturePlan(len(arrays.train_labels), len(arrays.test_labels), FEATURES, VIEWS, images, "noise")
    writer = FeatureWriter(folder, plan)
    for table, first, end in writer.missing():
        writer.write(table, first, end, [rng.normal(size=(end - first, *plan.row(table))).astype(np.float32)])
    writer.finish()


def make_run(folder: Path, kind: str, graph: str) -> Callable[[], object]:
    """A function that makes the next batch and takes a step on it, from a tape or eagerly (`graph` = "off")."""
    settings: dict[str, Any] = {
        "run.steps": 1_000_000,
        "data.features": str(folder),
        "data.labels": 100,
        "data.batch_labelled": 64,
        "data.batch_unlabelled": 448,
        "teacher.model": "linear",
        "student.model": "linear",
        "feedback.kind": kind,
        "system.graph": graph,
    }
    config = load(CONFIG, settings)
    data = build_data(config.data, seed=0)
    trainee = assemble(
        config, classes=10, image_shape=data.image_shape, device=CPU, fixed_teacher=lambda: torch.nn.Identity()
    )
    step = choose_execution(trainee, config, CPU, print, decodes=False)
    return lambda: step(data.train.next())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--total", type=int, default=0, help="steps in a row, timed instead of a record")
    asked = parser.parse_args()
    keep_memory("benchmarks.bench_features")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        write_store(Path(scratch))
        forms = {"exact, eager": ("exact", "off"), "exact": ("exact", "auto"), "off": ("off", "auto")}
        runs = {f"feedback {name}": make_run(Path(scratch), *form) for name, form in forms.items()}
        if asked.total:
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(asked.total):
                runs["feedback exact"]()
            print(f"{asked.total} exact steps: {time.process_time() - cpu:.2f} s of CPU time", end=", ")
            print(f"{time.perf_counter() - wall:.2f} s")
            return
        sizes: dict[str, Any] = {"B": 64, "U": 448, "features": FEATURES, "classes": 10}
        found = compare(
            runs,
            rounds=asked.rounds,
            warmup=20,
            baseline="feedback exact, eager",
            name="feature_steps",
            config=sizes,
            repeats=100,
        )
        for row in found.rows:
            print(row["variant"], row["cpu_median"], row["operations"])
        print(save(found))


if __name__ == "__main__":
    main()
