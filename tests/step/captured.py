"""Runs whose steps are captured, on a GPU or by the emulation: the forms of the step, their networks and batches."""

from pathlib import Path

import torch

from fastmpl.analysis.fake_run import make_fake_batch
from fastmpl.config import Config, load
from fastmpl.data.batch import Batch
from fastmpl.models import build
from fastmpl.run.build import Trainee, assemble

CONFIGS = Path(__file__).parents[2] / "launch" / "configs"
SHAPE = (3, 8, 8)

FORMS: list[dict[str, object]] = [
    {},
    {"method__targets": "sampled", "feedback__kind": "scalar", "feedback__baseline": 0.9},
    {"system__schedule": "joint", "student__dropout": 0.2, "teacher__dropout": 0.2},
    {"system__deferred": True, "system__recompute": True},
    {"system__precision": "bf16", "student__optimiser": "adamw", "student__clip": 1.0},
    {"system__accumulate": 2, "feedback__tangent": "difference", "student__optimiser": "fastmpl:sgd_ema"},
]


def config(**changes: object) -> Config:
    """Rates that change every step, and short ramps."""
    small = {"data.batch_labelled": 8, "data.batch_unlabelled": 16, "run.steps": 40, "uda.ramp": 20}
    return load(CONFIGS / "digits.toml", small | {key.replace("__", "."): value for key, value in changes.items()})


def trainee(settings: Config, device: str) -> Trainee:
    return assemble(
        settings,
        classes=10,
        image_shape=SHAPE,
        device=torch.device(device),
        fixed_teacher=lambda: build(
            "conv", classes=10, image_shape=SHAPE, dropout=0, norm="batch", width=32, depth=3, seed=0
        ),
    )


def batches(settings: Config, count: int) -> list[Batch]:
    torch.manual_seed(0)
    shapes = make_fake_batch(settings, SHAPE, 10)
    return [shapes.map(lambda part: torch.randn_like(part) if part.is_floating_point() else part) for _ in range(count)]
