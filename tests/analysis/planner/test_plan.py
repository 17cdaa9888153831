"""A plan made of a configuration alone predicts the memory of the step, what fits, and refuses what it cannot know."""

from pathlib import Path
from typing import Any

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmpl.analysis import planner
from fastmpl.analysis.accounting import measure
from fastmpl.analysis.fake_run import FakeRun
from fastmpl.analysis.planner.cost import Shape
from fastmpl.analysis.planner.plan import TangentParts, divide_tangent, size_of
from fastmpl.cli import main
from fastmpl.config import Config, ConfigError, load

DIGITS = Path(__file__).parents[3] / "launch/configs/digits.toml"
GIB = 2**30


def config(**changes: Any) -> Config:
    small = {"data.batch_labelled": 16, "data.batch_unlabelled": 64}
    return load(DIGITS, small | {key.replace("__", "."): value for key, value in changes.items()})


def peak_of(config: Config) -> int:
    """Bytes of the step itself, on fake tensors."""
    with FakeTensorMode():
        run = FakeRun(config, 10, (3, 8, 8))
        run.step()
        return measure(run.step, *run.list_held()).peak_bytes


@pytest.mark.parametrize(
    ("schedule", "changes"),
    [
        ("split", {}),
        ("split, deferred", {"system__deferred": True}),
        ("split", {"system__precision": "bf16", "feedback__tangent": "difference", "feedback__kind": "off"}),
        ("joint", {"system__schedule": "joint", "feedback__kind": "off"}),
    ],
)
def test_the_peak_with_copies_is_that_of_the_step(schedule: str, changes: dict[str, Any]) -> None:
    found = planner.plan_memory(config(**changes), ranks=1, memory=GIB, schedules=(schedule,)).fits[0]
    assert found.sharding == "copies"
    assert found.peak == pytest.approx(peak_of(config(**changes)), rel=0.05)


def test_the_largest_batch_fits_and_a_larger_one_does_not() -> None:
    memory = 100 * 2**20
    (fit, *_) = planner.plan_memory(config(), ranks=1, memory=memory, schedules=("split",)).fits
    assert fit.times > 2
    sizes = {}
    for share in (0.98, 1.05):
        labelled, unlabelled = (round(n * fit.times * share) for n in (16, 64))
        sizes[share] = peak_of(config(data__batch_labelled=labelled, data__batch_unlabelled=unlabelled))
    assert sizes[0.98] <= memory < sizes[1.05]


def test_more_ranks_hold_and_compute_less() -> None:
    one, four = (planner.plan_memory(config(), ranks=n, memory=GIB, schedules=("split",)) for n in (1, 4))
    assert four.batches == {"batch_labelled": 4, "batch_unlabelled": 16}
    assert four.costs["split"].flops == pytest.approx(one.costs["split"].flops / 4, rel=0.01)
    assert four.states["ZeRO 3"].device < one.states["ZeRO 3"].device / 3.9


def test_half_precision_halves_activations_and_no_state() -> None:
    full, half = (
        planner.plan_memory(config(system__precision=p), ranks=1, memory=GIB, schedules=("split",))
        for p in ("float32", "bf16")
    )
    assert half.costs["split"].activations < 0.8 * full.costs["split"].activations
    assert half.states == full.states


def test_a_tangent_in_parts_is_planned() -> None:
    shape = Shape(10, (3, 160, 160))
    vit = config(student__model="timm:test_vit", data__image_size=160, data__batch_unlabelled=4096)
    assert divide_tangent(vit, shape, ranks=2) == (2, 1024)
    assert divide_tangent(vit, shape, ranks=4) == (1, 1024)
    assert divide_tangent(config(), Shape(10, (3, 8, 8)), ranks=1) == (1, 64)  # batch norm
    scalar = config(method__targets="sampled", feedback__kind="scalar")
    assert divide_tangent(scalar, shape, ranks=1) is None


def test_parts_of_the_tangent_are_told_where_there_are_several() -> None:
    supervised = config(method__name="supervised", feedback__kind="off")
    found = planner.plan_memory(supervised, ranks=1, memory=GIB)
    line = "tangent   in 2 parts of at most 1,024 images, to bound its temporaries"
    for tangent in (None, TangentParts(1, 64)):
        assert not any("tangent" in line for line in planner.format_plan(found._replace(tangent=tangent)))
    assert line in planner.format_plan(found._replace(tangent=TangentParts(2, 1024)))


def test_lamb_leaves_copies_alone() -> None:
    assert list(
        planner.plan_memory(config(student__optimiser="lamb"), ranks=2, memory=GIB, schedules=("split",)).states
    ) == ["copies"]


def test_one_network_has_one_schedule() -> None:
    found = planner.plan_memory(config(method__name="supervised", feedback__kind="off"), ranks=1, memory=GIB)
    assert list(found.networks) == ["student"]
    assert list(found.costs) == ["one network"]


def test_the_largest_layer_is_that_of_one_module() -> None:
    import torch

    assert size_of(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))) == (16 + 10, 16)


def test_what_a_configuration_alone_does_not_tell_is_asked_for() -> None:
    folder = load(DIGITS, {"data.source": "folder", "data.root": "a"})
    with pytest.raises(ConfigError, match="Add --classes N"):
        planner.plan_memory(folder, ranks=1, memory=GIB)
    with pytest.raises(ConfigError, match="gives 32 ranks less than an image each"):
        planner.plan_memory(config(), ranks=32, memory=GIB)


def test_the_verb_prints_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(DIGITS), "--ranks", "2", "--memory", "0.0001"]) == 0
    shown = capsys.readouterr().out
    assert "student" in shown and "ZeRO 3, offload" in shown and "does not fit" in shown
    assert max(map(len, shown.splitlines())) < 160
