"""How well `feedback.tangent = "difference"` follows forward mode over a training: `python -m benchmarks.bench_difference`.

The cosine between the two forms of the student's tangent after each step of a short training, from random weights to a
rate near 0, in float32. Ten pictures of noise with noise on them: the least cosine tells, not the accuracy. One minute.
"""

import argparse
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.records import Record, save
from fastmpl.config import NetworkConfig
from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.protocol import LossPass, TangentPass
from fastmpl.models import build

KEY: Final = torch.zeros((), dtype=torch.int64)
SETTINGS: Final[tuple[dict[str, Any], ...]] = (
    {"optimiser": "nesterov", "lr": 0.05},
    {"optimiser": "adamw", "lr": 1e-3},
)
SIZES: Final = {"wrn_28_2": 32, "wrn_10_1": 16, "conv": 16}  # pixels


def cosines(model: str, settings: dict[str, Any], steps: int, pixels: int) -> list[float]:
    """Between the tangents of the two forms, after each step."""
    g = torch.Generator().manual_seed(0)
    shape = (3, pixels, pixels)
    pictures = torch.randn(10, *shape, generator=g)

    def draw() -> tuple[Tensor, Tensor]:
        targets = torch.randint(10, (16,), generator=g)
        return pictures[targets] + torch.randn(16, *shape, generator=g), targets

    module = build(model, classes=10, image_shape=shape, dropout=0.0, norm="batch", width=32, depth=3, seed=1)
    learner = PlainLearner(module, NetworkConfig(warmup=0, **settings), steps=steps)
    found = []
    for step in range(steps):
        (images, targets), (others, other_targets) = draw(), draw()
        logits = learner.forward(images, KEY)
        learner.accumulate(F.cross_entropy(logits, targets))
        update = learner.apply(torch.tensor(step), keep=True)

        def loss(logits: Tensor, targets: Tensor = other_targets) -> Tensor:
            return F.cross_entropy(logits, targets)

        gradient = learner.gradient([LossPass(others, loss, KEY)])
        tangents = []
        for form in ("jvp", "difference"):
            learner.tangent_form = form
            (moved,) = learner.tangents(update, [TangentPass(images, logits.detach(), KEY)], gradient)
            tangents.append(moved.flatten())
        found.append(float(F.cosine_similarity(tangents[0], tangents[1], dim=0)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args().steps
    rows = []
    for model, pixels in SIZES.items():
        for settings in SETTINGS:
            found = cosines(model, settings, steps, pixels)
            cosine = {"first step": f"{found[0]:.5f}", "last step": f"{found[-1]:.5f}", "least": f"{min(found):.5f}"}
            rows.append({"network": model, "optimiser": settings["optimiser"]} | cosine)
            print("  ".join(str(value) for value in rows[-1].values()), flush=True)
    print(save(Record("difference", "table", rows, {"steps": steps, "images": 16})))


if __name__ == "__main__":
    main()
