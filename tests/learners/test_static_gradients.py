"""Gradients at addresses that stay, as a CUDA graph needs them: the same steps, whatever the optimiser."""

import pytest
import torch
from torch import Tensor

from fastmpl.learners.optimiser import Optimiser
from fastmpl.learners.plain import PlainLearner
from tests.step.worlds import FEATURES, network, optimiser

KEY = torch.zeros((), dtype=torch.int64)
NAMES = ("sgd", "nesterov", "fastmpl:sgd_ema", "adamw", "lamb")


def learner(name: str, *, static: bool) -> PlainLearner:
    settings = optimiser(name, clip=0.3)
    return PlainLearner(network(1, norm=True), settings, steps=100, average=0.9, static_gradients=static)


def images(step: int) -> Tensor:
    return torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def take(one: PlainLearner, step: int, *, parts: int = 1) -> None:
    for rows in images(step).chunk(parts):
        one.accumulate(one.forward(rows, KEY).square().mean() / parts)
    one.apply(torch.tensor(step))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_the_same_bit_for_bit(name: str, parts: int) -> None:
    ours, plain = learner(name, static=True), learner(name, static=False)
    for step in range(4):
        take(ours, step, parts=parts)
        take(plain, step, parts=parts)
    assert all(torch.equal(value, plain.state()[key]) for key, value in ours.state().items())


@pytest.mark.parametrize("name", NAMES)
def test_an_optimiser_is_given_the_same_addresses_at_every_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    honest = Optimiser.step

    def spy(self: Optimiser, gradients: dict[str, Tensor], *rest: object, **options: object) -> object:
        seen.append([value.data_ptr() for value in gradients.values()])
        return honest(self, gradients, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Optimiser, "step", spy)
    one = learner(name, static=True)
    kept = []  # so that no address comes back by chance
    for step in range(3):
        take(one, step)
        kept.append(torch.empty(100_000))
    assert seen[0] == seen[1] == seen[2]


def test_a_parameter_without_a_gradient_is_given_zeros_and_not_the_gradient_of_the_step_before() -> None:
    one = learner("sgd", static=True)
    take(one, 0)
    assert one.buffers is not None
    one.accumulate(one.parameters["0.weight"].sum())
    one.apply(torch.tensor(1))
    assert one.buffers["2.weight" if "2.weight" in one.buffers else "3.weight"].abs().sum() == 0


def test_gradients_do_not_stay_with_the_parameters() -> None:
    one = learner("adamw", static=True)
    take(one, 0)
    assert all(p.grad is None for p in one.parameters.values())
