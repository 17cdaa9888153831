"""system.attention reaches the networks of a run, and the student that is read back."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmpl.analysis.fake_run import FakeRun
from fastmpl.config import Config, load
from fastmpl.models import build_network
from fastmpl.run.classifier import _build

DIGITS = Path(__file__).parents[2] / "launch/configs/digits.toml"
SHAPE = (3, 160, 160)


def config(**changes: object) -> Config:
    vit: dict[str, object] = {f"{role}.model": "timm:test_vit" for role in ("teacher", "student")}
    return load(DIGITS, vit | {"data.image_size": 160} | {key.replace("__", "."): x for key, x in changes.items()})


def forms(module: nn.Module) -> set[bool]:
    return {layer.fused_attn for layer in module.modules() if hasattr(layer, "fused_attn")}


@pytest.mark.parametrize(("form", "fused"), [("fused", True), ("math", False)])
def test_both_networks_and_the_student_of_a_finished_run_have_the_form(form: str, fused: bool) -> None:
    asked = config(system__attention=form)
    with FakeTensorMode():
        run = FakeRun(asked, 10, SHAPE)
    assert run.trainee.teacher is not None
    assert forms(run.trainee.student.module) == forms(run.trainee.teacher.module) == {fused}
    weights = build_network(asked.student, classes=10, image_shape=SHAPE, seed=0).state_dict()
    built = _build(asked.student, asked, tuple(map(str, range(10))), SHAPE, weights)
    assert forms(built) == {fused}


def test_the_tangent_of_a_run_goes_in_parts_of_a_bounded_size() -> None:
    with FakeTensorMode():
        student: Any = FakeRun(config(), 10, SHAPE).trainee.student
        scalar: Any = FakeRun(config(method__targets="sampled", feedback__kind="scalar"), 10, SHAPE).trainee.student
    assert student.tangent_images > 0
    assert scalar.tangent_images == 0
