"""What the configuration that `fastmpl init` writes learns: `python -m benchmarks.experiments.first_run`.

Each seed is a set of its own of bright shapes on textures (`tests/shapes.py`): five classes, 10 labels a class, 300
unlabelled pictures and 300 of the test. A run has one thread; its seconds are those of this machine.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments.common import options, record, run_rows, tell
from benchmarks.records import Row
from fastmpl.commands.init import write_first_config
from fastmpl.config import load
from fastmpl.study.arms import Arm, run_arms
from tests import shapes

ARMS: Mapping[str, Mapping[str, Any]] = {"as init writes it": {}, "labels alone": {"method.name": "supervised"}}


def prepare_sets(folder: Path, seeds: int) -> None:
    """Draws the sets that are not there yet."""
    for seed in range(seeds):
        if not (folder / str(seed)).exists():
            drawn = shapes.make(folder / f"drawing-{seed}", seed=seed)
            drawn.rename(folder / str(seed))


def main(arguments: Sequence[str] | None = None) -> int:
    asked = options("first_run", __doc__.splitlines()[0], steps=0, seeds=4).parse_args(arguments)  # 0: those of init
    sets = (asked.output / "sets").absolute()
    sets.mkdir(parents=True, exist_ok=True)
    prepare_sets(sets, asked.seeds)
    first = asked.output / "first.toml"
    if not first.exists():
        write_first_config(str(sets / "0"), first)
    asked.steps = asked.steps or load(first).run.steps
    arms = [
        Arm(name.replace(" ", "-"), first, {"data.root": f"{sets}/{{seed}}", "run.steps": asked.steps, **changes})
        for name, changes in ARMS.items()
    ]
    outcomes = run_arms(arms, asked.seeds, asked.output, tell, asked.jobs)
    rows: list[Row] = []
    for name in ARMS:
        rows += run_rows("test pictures right", name, outcomes[name.replace(" ", "-")])
    record(asked, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
