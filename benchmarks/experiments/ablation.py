"""The record of what `fastmpl ablate` finds: the feedback off, on, shuffled and flipped, on any configuration.

    python -m benchmarks.experiments.ablation launch/configs/digits.toml --record ablation_digits
    python -m benchmarks.experiments.ablation CONFIG --record NAME --seeds 5 --section.key value ...

Other options are those of `fastmpl ablate`, which also prints its tables and writes its report.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiments.common import record, row
from benchmarks.records import RESULTS, Row
from fastmpl import cli
from fastmpl.config import load


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.ablation", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--record", required=True, help="name of the record, and of the folder below runs/")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    asked, options = parser.parse_known_args(arguments)
    folder = Path("runs") / asked.record
    words = ["ablate", str(asked.config), "--seeds", str(asked.seeds), "--output", str(folder)]
    if code := cli.main([*words, *options]):
        return code
    tables = json.loads((folder / "ablation.json").read_text())
    rows: list[Row] = [
        row(title, f"feedback {arm['name']}", seed, accuracy)
        for title, arms in tables.items()
        for arm in arms
        for seed, accuracy in enumerate(arm["accuracies"])
    ]
    asked.steps = load(folder / "config.toml").run.steps
    record(asked, rows, baseline="feedback off", configuration=asked.config.name, options=shlex.join(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
