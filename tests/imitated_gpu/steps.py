"""Steps of the shipped configurations at sizes that a CPU can take, for the imitated GPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastmpl.analysis.fake_run import make_fake_batch
from fastmpl.config import Config, load
from fastmpl.data.batch import Batch
from fastmpl.models import build
from fastmpl.run.build import Trainee, assemble
from fastmpl.step.step_graph import GraphedStep
from fastmpl.telemetry.metrics import Meter

CONFIGS = Path(__file__).parents[2] / "launch" / "configs"
GPU = torch.device("cuda", 0)
STEPS = 20
WARMUP = 2  # eager steps before the capture: the imitation chooses no algorithms
# What is made smaller: batches, pictures, and networks by a smaller one of their family. Short ramps move every rate.
SMALL: dict[str, object] = {
    "data.batch_labelled": 4, "data.batch_unlabelled": 8, "data.batch_trusted": 0, "run.steps": 40,
    "uda.ramp": 20, "student.warmup": 4, "teacher.warmup": 4, "student.wait": 2, "system.engine": "plain",
}  # fmt: skip
LARGEST = {"timm:tf_efficientnet_b7": "timm:tf_efficientnet_b0", "timm:tf_efficientnet_l2": "timm:tf_efficientnet_b0"}
SMALLEST = {
    "timm:resnet50": "timm:test_resnet",
    **dict.fromkeys(("timm:tf_efficientnet_b0", *LARGEST), "timm:test_efficientnet"),
}
SIDES = {"timm": 32, "wrn": 8}


class Shape(NamedTuple):
    classes: int
    image: tuple[int, ...]


def load_small(name: str, smaller: Mapping[str, str] = SMALLEST, **changes: object) -> tuple[Config, Shape]:
    """The configuration `launch/configs/NAME.toml` made small, and what it classifies."""
    path = CONFIGS / f"{name}.toml"
    whole = load(path)
    asked = SMALL | {f"{role}.model": smaller[m] for role, m in _models(whole) if m in smaller}
    config = load(path, asked | {key.replace("__", "."): value for key, value in changes.items()})
    if config.data.source == "two_moons":
        return config, Shape(2, (2,))
    side = next((side for family, side in SIDES.items() if config.student.model.startswith(family)), 8)
    return config, Shape(10, (config.data.channels, side, side))


def _models(config: Config) -> list[tuple[str, str]]:
    return [("student", config.student.model), ("teacher", config.teacher.model)]


def make_trainee(config: Config, shape: Shape, device: torch.device = GPU) -> Trainee:
    return assemble(
        config,
        classes=shape.classes,
        image_shape=shape.image,
        device=device,
        fixed_teacher=lambda: build(
            "conv", classes=shape.classes, image_shape=shape.image, dropout=0, norm="batch", width=8, depth=3, seed=0
        ),
    )


def make_batches(config: Config, shape: Shape, count: int) -> list[Batch]:
    """Random pictures and labels; every batch is another."""
    generator = torch.Generator().manual_seed(0)
    empty = make_fake_batch(config, shape.image, shape.classes)

    def fill(name: str, part: torch.Tensor | None) -> torch.Tensor | None:
        if part is None:
            return None
        if not part.is_floating_point():
            return torch.randint(shape.classes, part.shape, generator=generator)
        numbers = torch.randn(part.shape, generator=generator)
        return numbers.softmax(1) if name.startswith("stored") else torch.empty_like(part).copy_(numbers)

    return [Batch(*map(fill, Batch._fields, empty)) for _ in range(count)]  # type: ignore[arg-type]


def assert_replays_equal_eager_steps(config: Config, shape: Shape, steps: int, batches: list[Batch]) -> GraphedStep:
    """Every report, the metrics and the state after `steps` replays are those of eager steps, bit for bit."""
    eager, captured = make_trainee(config, shape), make_trainee(config, shape)
    expected, found = Meter(GPU), Meter(GPU)
    eager.step.watch, captured.step.watch = expected.add, found.add
    graphed = GraphedStep(captured.step, GPU)
    rates = set()
    for batch in batches[: WARMUP + steps]:
        wanted, given = eager.step(batch.to(GPU)), graphed(batch)
        for name, a, b in zip(wanted._fields, wanted, given, strict=True):
            assert torch.equal(a, b) or (a.isnan() and b.isnan()), f"{name}: {a} eagerly, {b} replayed"
        rates.add(float(given.student_rate))
    assert len(rates) > min(steps, 3) or config.student.schedule == "constant"
    assert torch.equal(expected.kept, found.kept)
    replayed = captured.parts().state()
    for name, value in eager.parts().state().items():
        assert torch.equal(value, replayed[name]), name
    return graphed


def changed(config: Config, section: str, **values: Any) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
