"""Low-rank adapters: what they compute, what they freeze, and the network that they are merged into."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from fastmpl.config import NetworkConfig
from fastmpl.models import ModelError, build, build_network
from fastmpl.models.adapters import add_adapters, merge_adapters
from fastmpl.models.pretrained import classifier_of


def network(model: str, side: int = 8) -> nn.Module:
    shape = (3, side, side)
    return build(model, classes=4, image_shape=shape, dropout=0.0, norm="batch", width=8, depth=3, seed=0)


def move_adapters(module: nn.Module) -> None:
    """Makes every B differ from 0, as training does."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if name.endswith("adapter_b"):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


@pytest.mark.parametrize(("model", "side"), [("perceptron", 8), ("conv", 8), ("wrn_10_1", 8), ("timm:test_vit", 32)])
def test_a_merged_network_computes_what_the_adapted_one_does(model: str, side: int) -> None:
    module = network(model, side).double().eval()
    plain = {name: value.clone() for name, value in module.state_dict().items()}
    images = torch.randn(3, 3, side, side, dtype=torch.float64)
    before = module(images)
    add_adapters(module, 2, seed=3)
    assert torch.equal(module(images), before)  # B is 0
    move_adapters(module)
    after = module(images)
    assert float((after - before).detach().abs().max()) > 1e-3
    merged = merge_adapters(module.state_dict())
    assert merged.keys() == plain.keys()
    again = network(model, side).double().eval()
    again.load_state_dict(merged)
    torch.testing.assert_close(again(images), after, rtol=1e-10, atol=1e-10)


def test_everything_but_adapters_and_classifier_is_frozen() -> None:
    module = network("conv")
    add_adapters(module, 2, seed=0)
    head = classifier_of(module)
    learning = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert all(name.startswith(head) or "adapter_" in name for name in learning)
    assert sum("adapter_a" in name for name in learning) == 3


def test_adapters_are_a_function_of_their_seed() -> None:
    def adapters(seed: int) -> dict[str, Tensor]:
        module = network("perceptron")
        add_adapters(module, 2, seed)
        return {name: value for name, value in module.state_dict().items() if "adapter_a" in name}

    one, same, other = adapters(1), adapters(1), adapters(2)
    assert one and all(torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name]) for name in one)


def test_a_rank_above_a_layers_size_is_cut_to_it() -> None:
    module = network("perceptron")
    add_adapters(module, 1000, seed=0)
    assert all(b.shape[1] <= min(b.shape[0], 192) for name, b in module.state_dict().items() if "adapter_b" in name)


def test_a_network_without_a_layer_to_adapt_is_refused() -> None:
    section = NetworkConfig(model="linear", adapter="lora:2", pretrained="w.safetensors")
    with pytest.raises(ModelError, match="no layer to adapt"):
        build_network(section, classes=3, image_shape=(5,), seed=0)


@pytest.mark.parametrize("adapter", ["lora", "lora:0", "lora:1025", "lora:8 ", "dora:8"])
def test_only_ranks_that_can_be_used_are_accepted(adapter: str) -> None:
    with pytest.raises(ValueError, match="adapter"):
        NetworkConfig(adapter=adapter)


def test_grouped_convolutions_keep_their_weights() -> None:
    module: Any = timm.create_model("test_efficientnet", num_classes=3)
    add_adapters(module, 2, seed=0)
    grouped = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert grouped and not any(hasattr(m, "adapter_a") for m in grouped)


class Repeating(nn.Module):
    """A layer under two names of one module, and of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = self.first
        self.inner = nn.Sequential(self.first)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.inner(self.second(self.first(x).tanh()).tanh()))  # type: ignore[no-any-return]


def test_a_layer_that_is_used_twice_has_one_adapter_and_is_merged_as_one() -> None:
    torch.manual_seed(0)
    module, again, images = Repeating().double(), Repeating().double(), torch.randn(4, 6, dtype=torch.float64)
    assert add_adapters(module, 2, seed=0) == 1
    module.double()
    assert module.first is module.second is module.inner[0]
    move_adapters(module)
    again.load_state_dict(merge_adapters(module.state_dict()))
    torch.testing.assert_close(again(images), module(images), rtol=1e-10, atol=1e-10)
