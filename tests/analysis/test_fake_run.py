"""Every shipped step could be one CUDA graph: no host read, no moved scalar, no growth; shown on fake tensors."""

from pathlib import Path
from typing import Any

import pytest
import timm.optim  # noqa: F401  # its first import looks for apex, and must not find the fake one of a test
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmpl.analysis.capture_lint import lint
from fastmpl.analysis.fake_run import FakeRun, find_capture_faults
from fastmpl.config import load
from fastmpl.config.optimisers import ABILITIES
from fastmpl.run.build import Trainee
from fastmpl_kernels import rows
from tests.examples import EXAMPLES
from tests.learners import fake_apex

CONFIGS = Path(__file__).parents[2] / "launch" / "configs"
SHAPES: dict[str, tuple[int, tuple[int, ...]]] = {
    "two_moons": (2, (2,)),
    "digits": (10, (3, 8, 8)),
    "fashion_mnist": (10, (3, 28, 28)),
    "cifar10": (10, (3, 32, 32)),
    "svhn": (10, (3, 32, 32)),
    **dict.fromkeys(("folder", "webdataset", "tfrecord"), (10, (3, 64, 64))),
}
SMALL = {"data.batch_labelled": 8, "data.batch_unlabelled": 16}


def find_faults(name: str, **changes: Any) -> list[str]:
    config = load(CONFIGS / f"{name}.toml", SMALL | {key.replace("__", "."): value for key, value in changes.items()})
    classes, image_shape = SHAPES[config.data.source]
    if len(image_shape) == 3:
        image_shape = (config.data.channels, *image_shape[1:])
    return [str(fault) for fault in find_capture_faults(config, classes=classes, image_shape=image_shape)]


WHOLE = [path.stem for path in EXAMPLES if load(path).system.engine == "plain"]  # a sharded step is no single graph


@pytest.mark.parametrize("name", WHOLE)
def test_the_step_of_a_shipped_config_could_be_captured(name: str) -> None:
    assert find_faults(name) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"method__targets": "sampled", "feedback__kind": "scalar", "feedback__baseline": 0.99},
        {"method__targets": "sampled", "feedback__kind": "scalar", "feedback__baseline": 0.9},
        {"method__targets": "sampled", "feedback__kind": "per_example", "feedback__control": "shuffled"},
        {"feedback__tangent": "difference", "system__schedule": "joint"},
        {"student__optimiser": "adamw", "student__clip": 1.0, "system__precision": "bf16"},
        {"system__deferred": True, "student__dropout": 0.2, "teacher__dropout": 0.2},
        {"system__accumulate": 2, "method__label_view": "weak", "feedback__control": "flipped"},
        {"feedback__depth": 1},
        {"feedback__every": 4},
        {"method__name": "gold_correction", "method__corruption": "identity", "data__trusted": 50},
    ],
    ids=lambda changes: " ".join(f"{key.split('__')[1]}={value}" for key, value in changes.items()),
)
def test_every_form_of_the_step_could_be_captured(changes: dict[str, Any]) -> None:
    assert find_faults("digits", **changes) == []


def test_feedback_from_the_trusted_images_of_a_folder_could_be_captured() -> None:
    """A folder's trusted images are there although data.trusted is 0."""
    changes: dict[str, Any] = {"data__source": "folder", "data__root": "pictures", "feedback__images": "trusted"}
    assert load(CONFIGS / "digits.toml").data.trusted == 0
    assert find_faults("digits", **changes, **{f"{role}__model": "perceptron" for role in ("student", "teacher")}) == []


@pytest.mark.parametrize("name", ABILITIES)
def test_the_optimisers_that_can_be_captured_are_those_of_the_table(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_apex.installed(monkeypatch, tmp_path)
    small = {f"{role}__model": "perceptron" for role in ("student", "teacher")} | {"student__optimiser": name}
    found = find_faults("digits", **small, student__clip=1.0)
    assert (found == []) == ABILITIES[name].captured
    assert all("host read" in fault for fault in found)


def test_a_host_read_in_a_real_step_is_found() -> None:
    """The lint sees through the learners: one value read in the middle of the step is a fault."""
    config = load(CONFIGS / "digits.toml", SMALL)

    def step(run: FakeRun) -> None:
        trainee: Trainee = run.trainee
        report = trainee.step(run.batch)
        torch.zeros(1).mul_(float(report.student_loss))

    found = lint(lambda: FakeRun(config, 10, (3, 8, 8)), step, lambda run: None)
    assert any(fault.kind == "host read" for fault in found)


@pytest.mark.parametrize("name", ["cifar10_4k", "digits_pseudo_label"])
def test_what_a_real_step_does_every_tenth_time_is_found_though_its_networks_are_large(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FakeRun.step

    def step(run: FakeRun) -> None:
        whole(run)
        run.taken = getattr(run, "taken", 0) + 1  # type: ignore[attr-defined]
        if run.taken % 10 == 0:  # type: ignore[attr-defined]
            run.batch.labelled.mul_(1)

    monkeypatch.setattr(FakeRun, "step", step)
    assert any("test_fake_run.py" in fault and "varies" in fault for fault in find_faults(name))


def test_a_real_step_that_moves_to_the_cpu_by_a_device_object_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FakeRun.step

    def step(run: FakeRun) -> None:
        whole(run)
        run.batch.labelled.to(torch.device("cpu"), non_blocking=True)

    monkeypatch.setattr(FakeRun, "step", step)
    (fault,) = find_faults("digits")
    assert fault.startswith("analysis/test_fake_run.py")
    assert "host traffic" in fault


def test_a_step_on_fake_tensors_leaves_nothing_behind_that_a_real_one_would_use() -> None:
    """As when a run is checked and then trained in one process: what is made once must not be made of nothing."""
    rows._constant.cache_clear()
    config = load(CONFIGS / "digits.toml", SMALL)
    with FakeTensorMode():
        FakeRun(config, 10, (3, 8, 8)).step()
    FakeRun(config, 10, (3, 8, 8)).step()
