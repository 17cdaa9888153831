"""On a GPU: a captured step is the eager one, bit for bit, and reads nothing on the host."""

from pathlib import Path

import pytest
import torch

from fastmpl.assemble import Trainee, assemble
from fastmpl.capture import fake_batch
from fastmpl.config import Config, load
from fastmpl.data.batch import Batch
from fastmpl.models import build
from fastmpl.step.accounting import measure
from fastmpl.step.graphed import WARMUP, GraphedStep

CONFIGS = Path(__file__).parents[2] / "launch" / "configs"
SHAPE = (3, 8, 8)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def config(**changes: object) -> Config:
    """Rates that change every step, and short ramps."""
    small = {"data.batch_labelled": 8, "data.batch_unlabelled": 16, "run.steps": 40, "uda.ramp": 20}
    return load(CONFIGS / "digits.toml", small | {key.replace("__", "."): value for key, value in changes.items()})


def trainee(settings: Config) -> Trainee:
    device = torch.device("cuda")
    return assemble(
        settings,
        classes=10,
        image_shape=SHAPE,
        device=device,
        fixed_teacher=lambda: build(
            "conv", classes=10, image_shape=SHAPE, dropout=0, norm="batch", width=32, depth=3, seed=0
        ),
    )


def batches(settings: Config, count: int) -> list[Batch]:
    torch.manual_seed(0)
    shapes = fake_batch(settings, SHAPE)
    return [
        Batch(*(None if p is None else torch.randn_like(p) if p.is_floating_point() else p for p in shapes))  # type: ignore[arg-type]
        for _ in range(count)
    ]


FORMS: list[dict[str, object]] = [
    {},
    {"method__targets": "sampled", "feedback__kind": "scalar", "feedback__baseline": 0.9},
    {"system__schedule": "joint", "student__dropout": 0.2, "teacher__dropout": 0.2},
    {"system__deferred": True, "system__recompute": True},
    {"system__precision": "bf16", "student__optimiser": "adamw", "student__clip": 1.0},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_graph_equals_eager_bit_for_bit_over_twenty_steps_with_changing_rates(form: dict[str, object]) -> None:
    settings = config(**form)
    eager, captured = trainee(settings), trainee(settings)
    graphed = GraphedStep(captured.step, torch.device("cuda"))
    for batch in batches(settings, WARMUP + 20):
        expected = eager.step(batch.to(torch.device("cuda")))
        found = graphed(batch)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(torch.equal(value, captured.state()[name]) for name, value in eager.state().items())


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_an_eager_step_never_waits_for_the_device(form: dict[str, object]) -> None:
    settings = config(**form)
    run = trainee(settings)
    first, second = (batch.to(torch.device("cuda")) for batch in batches(settings, 2))
    run.step(first)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.step(second)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_is_as_predicted() -> None:
    settings = config()
    run = trainee(settings)
    batch = batches(settings, 1)[0].to(torch.device("cuda"))
    run.step(batch)
    predicted = measure(lambda: run.step(batch), list(run.state().values()), tuple(batch), round_to=512).peak_bytes
    torch.cuda.reset_peak_memory_stats()
    run.step(batch)
    assert torch.cuda.max_memory_allocated() <= 1.05 * predicted + (64 << 20)  # cuDNN's workspace
