"""A network that uses a layer twice, under two names, computes and learns as any other where stand-ins are put in."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastmpl
from fastmpl.config import StudentConfig
from fastmpl.errors import ConfigError
from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.protocol import LossPass, TangentPass
from fastmpl.models.stand_ins import call_with, fill_places
from fastmpl.models.zoo import timm_model


class Repeating(nn.Module):
    """One layer under two names, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = self.first
        self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 3)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(torch.tanh(self.first(x)))
        return self.left(hidden) + self.right(hidden.tanh())  # type: ignore[no-any-return]


@pytest.fixture
def network() -> Repeating:
    torch.manual_seed(0)
    return Repeating().double()


def images(rows: int = 5) -> Tensor:
    return torch.randn(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_layer_with_two_names_keeps_its_own_tensors(network: Repeating) -> None:
    before = dict(network.named_parameters())
    doubled = {name: 2 * value.detach() for name, value in before.items()}
    other = Repeating().double()
    other.load_state_dict({name: 2 * value for name, value in network.state_dict().items()})
    torch.testing.assert_close(call_with(network, doubled, images()), other(images()))
    assert all(value is before[name] for name, value in network.named_parameters())
    assert len(list(network.parameters())) == len(before) == 5


def test_any_of_a_tensors_names_stands_for_it(network: Repeating) -> None:
    value = torch.zeros(6, 6, dtype=torch.float64)
    assert list(fill_places(network, {"second.weight": value})) == ["first.weight"]
    assert set(fill_places(network, {"right.weight": value})) == {"left.weight", "right.weight"}
    assert list(fill_places(network, {"second.weight": value, "first.weight": value})) == ["first.weight"]
    with pytest.raises(ValueError, match="another name of the same tensor"):
        fill_places(network, {"first.weight": value, "second.weight": value + 1})


@pytest.mark.parametrize("tangent", ["jvp", "difference"])
def test_a_learner_of_such_a_network_trains_what_it_uses(network: Repeating, tangent: str) -> None:
    config = StudentConfig(model="linear", lr=0.05, warmup=0, weight_decay=0.0, schedule="constant")
    learner = PlainLearner(network, config, steps=9, tangent=tangent)  # type: ignore[arg-type]
    draw = torch.tensor(0)
    for step in range(3):
        logits = learner.forward(images(), draw)
        learner.accumulate(logits.square().mean())
        update = learner.apply(torch.tensor(step), keep=True)
        gradient = learner.gradient([LossPass(images(), lambda rows: rows.square().mean(), draw)])
        assert update.old is not None
        old = {name: value.clone() for name, value in update.old.items()}
        direction = learner.optimiser.derivative(update, gradient)
        (found,) = learner.tangents(update, [TangentPass(images(), logits.detach(), draw)], gradient)
        moved = {name: value + 1e-6 * direction[name] for name, value in old.items()}
        wanted = (call_with(network, moved, images()) - call_with(network, old, images())) / 1e-6
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
        used = {id(value) for value in network.parameters()}
        assert used == {id(value) for value in learner.parameters.values()}


def test_a_network_of_timm_with_such_layers_is_built_of_its_own_tensors() -> None:
    network = timm_model("coat_lite_mini", classes=3, image_shape=(3, 32, 32), dropout=0.0, norm="batch")
    names = dict(network.named_parameters(remove_duplicate=False))
    assert len(names) > len(list(network.parameters()))  # it has such layers
    assert all(isinstance(value, nn.Parameter) and not value.is_meta for value in names.values())
    assert len(names) - len(list(network.parameters())) == 64


def test_nothing_else_of_ours_calls_torchs_own() -> None:
    package = Path(fastmpl.__file__).parent
    found = [path for path in package.rglob("*.py") if "import functional_call" in path.read_text(encoding="utf-8")]
    assert [path.name for path in found] == ["stand_ins.py"]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_network_without_a_parameter_that_learns_is_refused(network: Repeating, frozen: bool) -> None:
    module = network.requires_grad_(False) if frozen else nn.Flatten()
    with pytest.raises(ConfigError, match="no parameter that learns"):
        PlainLearner(module, StudentConfig(model="linear"), steps=9)


class Sparing(nn.Module):
    """A network with a layer that its forward leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("tangent", ["jvp", "difference"])
def test_a_layer_that_is_not_used_has_a_gradient_of_zero(tangent: str) -> None:
    config, draw = StudentConfig(model="linear", lr=0.05, warmup=0), torch.tensor(0)
    learner = PlainLearner(Sparing().double(), config, steps=9, tangent=tangent)  # type: ignore[arg-type]
    logits = learner.forward(images(), draw)
    learner.accumulate(logits.square().mean())
    update = learner.apply(torch.tensor(0), keep=True)
    gradient = learner.gradient([LossPass(images(), lambda rows: rows.square().mean(), draw)])
    assert not gradient["unused.weight"].any()
    assert gradient["used.weight"].any()
    (found,) = learner.tangents(update, [TangentPass(images(), logits.detach(), draw)], gradient)
    assert found.any()
