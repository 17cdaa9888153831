"""Two moons with three labels each (the toy of Pham et al. 2021, CVPR): `python -m benchmarks.experiments.two_moons`.

20 draws of the labels; a draw is solved where 95 % of the other points are right. The decision boundaries of the first
draws are drawn to <output>/boundaries.png.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.experiments.common import CONFIGS, options, record, row, run_rows, tell
from benchmarks.records import Row
from fastmpl.data.build import build as build_data
from fastmpl.run.student_file import load_network
from fastmpl.study.arms import Arm, run_arms

CONFIG = CONFIGS / "two_moons.toml"
SOLVED = 95.0  # % of the points
DRAWN = 4  # draws of labels
WITHOUT = {"feedback.kind": "off"}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "supervised": {**WITHOUT, "method.name": "supervised"},
    "pseudo-label": {**WITHOUT, "method.name": "pseudo_label", "method.targets": "argmax", "method.threshold": 0.5},
    "MPL, off": WITHOUT,
    "MPL, exact": {"feedback.kind": "exact"},
}


def slug(name: str) -> str:
    return name.replace(", ", "-").lower()


def draw_boundaries(folder: Path, seeds: int) -> Path:
    """Where each arm's student changes its mind: a row an arm, a column a draw of labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 * seeds, 2.1 * len(ARMS)), layout="constrained")
    axes = figure.subplots(len(ARMS), seeds, squeeze=False, sharex=True, sharey=True)
    xs, ys = np.meshgrid(np.linspace(-1.5, 2.5, 161), np.linspace(-1.0, 1.5, 101))
    points = torch.from_numpy(np.stack([xs.ravel(), ys.ravel()], 1).astype(np.float32))
    for place, name in enumerate(ARMS):
        for seed in range(seeds):
            arm, at = Arm(slug(name), CONFIG, ARMS[name]).config_of(seed, folder), axes[place][seed]
            data = build_data(arm.data, seed=seed)
            network = load_network(folder / arm.run.name, classes=2, image_shape=(2,)).eval()
            with torch.no_grad():
                share = torch.softmax(network(points), -1)[:, 1].reshape(xs.shape).numpy()
            labelled = data.examples(data.split.labelled)
            assert data.test is not None
            at.contourf(xs, ys, share, levels=[0, 0.5, 1], colors=["#c7dcf0", "#f6d3c3"])
            at.scatter(*data.test.images[::4].T.numpy(), c=data.test.labels[::4].numpy(), s=1, cmap="coolwarm")
            at.scatter(*labelled.images.T.numpy(), c="black", s=14, marker="x")
            at.set(xticks=[], yticks=[])
            if seed == 0:
                at.set_ylabel(name)
            if place == 0:
                at.set_title(f"draw {seed}")
    path = folder / "boundaries.png"
    figure.savefig(path, dpi=100)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    asked = options("two_moons", __doc__.splitlines()[0], steps=4000, seeds=20).parse_args(arguments)
    torch.set_num_threads(1)
    common = {"run.steps": asked.steps, "run.evaluate_every": asked.steps, "run.checkpoint_every": asked.steps}
    arms = [Arm(slug(name), CONFIG, {**common, **changes}) for name, changes in ARMS.items()]
    outcomes = run_arms(arms, asked.seeds, asked.output, tell, asked.jobs)
    rows: list[Row] = []
    for name in ARMS:
        found = run_rows("points right", name, outcomes[slug(name)])
        solved = [float(each["value"]) >= SOLVED for each in found]  # type: ignore[arg-type]
        tell(f"{name}: {sum(solved)} of {len(found)} draws solved")
        rows += found
        rows += [row("draws solved", name, seed, float(share)) for seed, share in enumerate(solved)]
    rows.sort(key=lambda each: each["case"] != "draws solved")
    tell(f"boundaries: {draw_boundaries(asked.output, min(DRAWN, asked.seeds))}")
    record(asked, rows, baseline="MPL, off")
    return 0


if __name__ == "__main__":
    sys.exit(main())
