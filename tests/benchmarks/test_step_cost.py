"""The costs that the schedules are for, counted: memory, arithmetic and operators against the published order."""

import pytest
import torch

from benchmarks.bench_memory import account, work
from benchmarks.bench_prediction import CASES, Case, row
from benchmarks.bench_step import unfuse
from benchmarks.steps import RESNET50, WRN, Size, Step
from fastmpl.analysis.accounting import Account, measure
from fastmpl_kernels import dispatch

SMALL = Size("wrn_28_2", 32, 2, 4)  # operators do not depend on the number of images


@pytest.mark.slow
def test_two_resnet_50_take_the_memory_of_training_one() -> None:
    published = account(RESNET50, schedule="published").peak_bytes
    deferred = account(RESNET50, deferred=True).peak_bytes
    assert deferred <= 0.38 * published
    assert account(RESNET50, deferred=True, recompute=True).peak_bytes <= 0.18 * published
    assert deferred <= 1.10 * account(RESNET50, schedule="supervised").peak_bytes
    assert work(RESNET50, deferred=True, recompute=True) <= 1.15 * work(RESNET50, schedule="published")


def test_wrn_28_2_takes_less_memory_in_every_schedule_than_in_the_published_order() -> None:
    published = account(WRN, schedule="published").peak_bytes
    assert account(WRN).peak_bytes <= 0.70 * published
    assert account(WRN, deferred=True).peak_bytes <= 0.40 * published
    assert account(WRN, schedule="joint", deferred=True).peak_bytes <= 0.70 * published


def updates(settings: dict[str, object]) -> torch.Tensor:
    """What the first step takes off both networks' parameters: lr (1 + momentum) times their gradients."""
    torch.manual_seed(0)
    step = Step(Size("wrn_10_1", 32, 8, 56), channels_last=True, **settings)  # type: ignore[arg-type]
    parameters = [p for learner in (step.teacher, step.student) for p in learner.parameters.values()]
    before = [p.detach().clone() for p in parameters]
    step()
    return torch.cat([(b - p.detach()).flatten() for b, p in zip(before, parameters, strict=True)])


@pytest.mark.parametrize("kind", ["off", "scalar"])
def test_a_rebuilt_graph_gives_the_gradients_of_the_published_order(kind: str) -> None:
    """With feedback against `joint`: the published scalar compares a loss in one batch with a loss in another."""
    kept: dict[str, object] = {"schedule": "published" if kind == "off" else "joint", "kind": kind}
    expected = updates(kept)
    found = updates({"schedule": "joint", "deferred": True, "kind": kind})
    assert float((found - expected).norm() / expected.norm()) <= 1e-6


FORMS: dict[str, dict[str, object]] = {
    "published": {"schedule": "published"},
    "joint": {"schedule": "joint"},
    "split": {},
    "deferred": {"deferred": True},
    "recomputed": {"deferred": True, "recompute": True},
    "exact": {"kind": "exact"},
}


def operators(backend: dispatch.Choice, settings: dict[str, object]) -> Account:
    plain = backend == "reference"
    with dispatch.use(backend):
        step = Step(SMALL, channels_last=True, prepare=unfuse if plain else None, **settings)  # type: ignore[arg-type]
        step()
        return measure(step)


@pytest.mark.parametrize("form", FORMS)
def test_the_fused_operations_save_a_quarter_of_a_steps_launches(form: str) -> None:
    fused, plain = operators("auto", FORMS[form]), operators("reference", FORMS[form])
    assert fused.operations <= 0.75 * plain.operations, (fused.operations, plain.operations)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_steps_memory_is_what_fake_tensors_predict(case: Case) -> None:
    found = row(case)
    assert found["operators"] == found["operators, predicted"]
    assert found["predicted of live"] == pytest.approx(1.0, abs=0.05)
    assert found["predicted of allocated"] == pytest.approx(1.0, abs=0.05)
