"""Every optimiser is the one it names, skips what is not finite, continues from its state, and says what it cannot do."""

from pathlib import Path
from typing import get_args

import pytest
import timm.optim.lamb
import torch
from torch import Tensor

from fastmpl.config import NetworkConfig, StudentConfig
from fastmpl.config import Optimiser as OptimiserName
from fastmpl.config.optimisers import ABILITIES
from fastmpl.learners.optimiser_rows import OPTIMISERS
from fastmpl.learners.optimiser_rows import apex as apex_row
from fastmpl.learners.optimiser_rows.apex import OptimiserError
from fastmpl.learners.optimiser_rows.derivatives import differentiate_lamb
from fastmpl.learners.plain import PlainLearner
from tests.learners import fake_apex
from tests.step.worlds import FEATURES, network, optimiser

APEX = ["apex:FusedSGD", "apex:FusedAdam", "apex:FusedLAMB"]


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_apex.installed(monkeypatch, tmp_path)


def images() -> Tensor:
    return torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def trained(
    name: str, *, steps: int = 6, poison: int | None = None, clip: float = 0.0, norm: bool = True
) -> PlainLearner:
    learner = PlainLearner(network(1, norm=norm), optimiser(name, clip=clip), steps=100, average=0.9)
    for step in range(steps):
        loss = learner.forward(images(), torch.tensor(0)).square().mean()
        learner.accumulate(loss * (float("nan") if step == poison else 1.0))
        learner.apply(torch.tensor(step))
    return learner


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("clip", [0.0, 0.01])
@pytest.mark.parametrize("poison", [None, 3])
def test_the_fused_optimiser_is_nesterov_and_its_average(clip: float, poison: int | None, norm: bool) -> None:
    both = (trained(name, clip=clip, poison=poison, norm=norm) for name in ("fastmpl:sgd_ema", "nesterov"))
    ours, theirs = (learner.state() for learner in both)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw", "lamb", "fastmpl:sgd_ema", *APEX])
def test_a_gradient_that_is_not_finite_changes_nothing(name: str, apex: None) -> None:
    before, after = trained(name, steps=3).state(), trained(name, steps=4, poison=3).state()
    for key, value in before.items():
        if "running" not in key and "batches" not in key:
            torch.testing.assert_close(after[key], value, atol=0, rtol=0)


def test_the_step_after_a_skipped_one_is_the_step_that_was_skipped() -> None:
    """Counts stand still with the rest: bias corrections are those of the steps that were taken."""
    twice = [trained("lamb", steps=5, poison=3), trained("lamb", steps=4)]
    ours, theirs = ({n: p.detach() for n, p in each.parameters.items()} for each in twice)
    # the rate is constant here, and so are the images; running statistics do not enter the step
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-12, rtol=0)


def test_lamb_is_timms() -> None:
    ours = trained("lamb")
    theirs = network(1, norm=True)
    weights = [p for p in theirs.parameters() if p.ndim > 1]
    rest = [p for p in theirs.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    timms = timm.optim.lamb.Lamb(groups, lr=float(torch.tensor(0.05)), betas=(0.9, 0.999), max_grad_norm=None)
    for _ in range(6):
        theirs(images()).square().mean().backward()
        timms.step()
        timms.zero_grad()
    for p, q in zip(ours.module.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-9, rtol=0)


@pytest.mark.parametrize("clip", [0.0, 0.01])
@pytest.mark.parametrize("name", APEX)
def test_apex_takes_the_steps_of_the_optimiser_that_stands_in_for_it(name: str, clip: float, apex: None) -> None:
    theirs = trained(name, clip=clip).parameters
    for key, value in trained(ABILITIES[name].instead, clip=clip).parameters.items():
        torch.testing.assert_close(theirs[key], value, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["lamb", *APEX])
def test_an_optimiser_continues_from_its_state(name: str, apex: None) -> None:
    first, second = trained(name, steps=3), trained(name, steps=0)
    second.load(first.state())
    for learner in (first, second):
        learner.accumulate(learner.forward(images(), torch.tensor(0)).square().mean())
        learner.apply(torch.tensor(3))
    for key, value in first.state().items():
        torch.testing.assert_close(second.state()[key], value, atol=0, rtol=0)


def test_the_table_of_abilities_is_that_of_the_rows() -> None:
    assert set(ABILITIES) == set(OPTIMISERS) == set(get_args(OptimiserName))
    for name, row in OPTIMISERS.items():
        assert len(row.state) == ABILITIES[name].moments
        assert (row.skips != "host") == ABILITIES[name].captured
        assert (row.derivative is not differentiate_lamb) == ABILITIES[name].sharded


def test_the_documentation_shows_the_table_of_abilities() -> None:
    words = {True: "yes", False: "no"}
    text = (Path(__file__).parents[2] / "docs/optimisers.md").read_text()
    shown = [line for line in text.splitlines() if line.startswith("| `")]
    assert shown == [
        f"| `{name}` | yes | {words[able.captured]} | {words[able.sharded]} | {able.moments} | "
        f"{'[apex](apex.md) ' if able.package else ''}|"
        for name, able in ABILITIES.items()
    ]


BUILD = "Build NVIDIA apex (docs/apex.md) or use"


@pytest.mark.parametrize(
    ("there", "sentence"),
    [
        (None, f"it is not installed. {BUILD}"),
        ({"optimizers": False}, f"the apex installed is the unrelated PyPI package. {BUILD}"),
        ({"amp_c": False}, f"the apex installed has no CUDA extension (amp_C). {BUILD}"),
        ({}, "it needs a CUDA device, and there is none. Use"),
    ],
    ids=["none", "another project", "python only", "no gpu"],
)
def test_an_apex_that_cannot_serve_is_refused_with_the_reason(
    there: dict[str, bool] | None, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if there is not None:
        fake_apex.installed(monkeypatch, tmp_path, **there)
    monkeypatch.setattr(apex_row, "_has_device", lambda: False)
    for section, role in ((NetworkConfig, "teacher"), (StudentConfig, "student")):
        with pytest.raises(OptimiserError) as refused:
            PlainLearner(network(1), section(optimiser="apex:FusedSGD"), steps=1)
        expected = f"Optimiser: apex FusedSGD was asked for, but {sentence} --{role}.optimiser sgd."
        assert str(refused.value) == expected
        assert refused.value.exit_code == 2
