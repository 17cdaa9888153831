"""Two moons with three labels each (the toy of Pham et al. 2021, CVPR): `python -m benchmarks.experiments.two_moons`.

20 draws of the labels; a draw is solved where 95 % of the other points are right. A second record has the
decision boundaries of the first draws, of which `python -m benchmarks.figures` draws the picture.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.experiments.common import CONFIGS, options, record, row, run_rows, tell
from benchmarks.records import Record, Row, save
from fastmpl.run.classifier import load_network
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


def boundary_rows(folder: Path, seeds: int) -> list[Row]:
    """The areas in which each arm's student names the second class: for an arm and a draw of labels the corners of the
    polygons, with matplotlib's codes of what each corner is.
    """
    from contourpy import contour_generator  # comes with matplotlib

    xs, ys = np.meshgrid(np.linspace(-1.5, 2.5, 161), np.linspace(-1.0, 1.5, 101))
    points = torch.from_numpy(np.stack([xs.ravel(), ys.ravel()], 1).astype(np.float32))
    rows: list[Row] = []
    for name in ARMS:
        for seed in range(seeds):
            network = load_network(folder / f"{slug(name)}-{seed}", classes=2, image_shape=(2,)).eval()
            with torch.no_grad():
                share = torch.softmax(network(points), -1)[:, 1].reshape(xs.shape).numpy()
            filled: Any = contour_generator(xs, ys, share, fill_type="OuterCode").filled(0.5, 1.1)
            corners, codes = filled
            of = np.concatenate(corners or [np.empty((0, 2))]).round(3).T.tolist()
            kinds = [float(code) for code in np.concatenate(codes or [np.empty(0)])]
            rows.append({"arm": name, "draw": seed, "x": of[0], "y": of[1], "codes": kinds})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("two_moons", __doc__.splitlines()[0], steps=4000, seeds=20)
    parser.add_argument(
        "--boundaries", action="store_true", help="the record of the boundaries alone, of the first draws"
    )
    asked = parser.parse_args(arguments)
    drawn = min(DRAWN, asked.seeds)
    torch.set_num_threads(1)
    common = {"run.steps": asked.steps, "run.evaluate_every": asked.steps, "run.checkpoint_every": asked.steps}
    arms = [Arm(slug(name), CONFIG, {**common, **changes}) for name, changes in ARMS.items()]
    outcomes = run_arms(arms, drawn if asked.boundaries else asked.seeds, asked.output, tell, asked.jobs)
    areas, known = boundary_rows(asked.output, drawn), {"draws": drawn, "steps": asked.steps}
    save(Record(f"{asked.record}_boundaries", "table", areas, {**known}), asked.results)
    if asked.boundaries:
        return 0
    rows: list[Row] = []
    for name in ARMS:
        found = run_rows("points right", name, outcomes[slug(name)])
        solved = [float(each["value"]) >= SOLVED for each in found]  # type: ignore[arg-type]
        tell(f"{name}: {sum(solved)} of {len(found)} draws solved")
        rows += found
        rows += [row("draws solved", name, seed, float(share)) for seed, share in enumerate(solved)]
    rows.sort(key=lambda each: each["case"] != "draws solved")
    record(asked, rows, baseline="MPL, off")
    return 0


if __name__ == "__main__":
    sys.exit(main())
