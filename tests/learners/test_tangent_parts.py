"""The forward-mode pass in parts: how many images one takes, and that its temporaries stay below the bound."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from fastmpl.analysis.accounting import measure
from fastmpl.learners.passes import dual, tangent_of
from fastmpl.learners.tangent_parts import call_in_parts, images_at_once
from fastmpl.models import KeyedDropout, KeyedDropPath, build
from fastmpl.models.attention import use_math_attention
from fastmpl.models.zoo import _fit
from tests.step.test_transformers import NETWORKS, SHAPE

MIB = 2**20
IMAGES = 48


def network(name: str, pixels: int, **changes: Any) -> nn.Module:
    settings: dict[str, Any] = dict(dropout=0.0, norm="batch", width=64, depth=3, seed=0) | changes
    return build(name, classes=10, image_shape=(3, pixels, pixels), **settings)


def temporaries(module: nn.Module, images: Tensor, most: int) -> int:
    """Bytes that a forward-mode pass holds at its peak beside parameters, tangents and images."""
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    directions = {name: torch.empty_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def push() -> Tensor:
        with forward_ad.dual_level(), use_math_attention(module):
            duals = {name: dual(p, directions[name]) for name, p in parameters.items()}
            return call_in_parts(module, images, most, lambda x: tangent_of(functional_call(module, duals, (x,))))

    found = measure(push, parameters, directions, list(module.buffers()), images)
    return found.peak_bytes - found.base_bytes


@pytest.mark.parametrize(("name", "bound"), [("vit", 2), ("swin", 1), ("conv", 4)])
def test_the_temporaries_of_a_part_stay_below_the_bound(name: str, bound: int) -> None:
    if name == "conv":
        shape, module = (3, 64, 64), network(name, 64, norm="group")
    else:
        shape = SHAPE
        module = _fit(NETWORKS[name](), name, SHAPE, 0.0, "batch")
    images = torch.zeros(IMAGES, *shape)
    most = images_at_once(module, shape, bound * MIB)
    assert 1 <= most < IMAGES
    assert temporaries(module, images, 0) > bound * MIB  # the bound is not met without parts
    assert bound * MIB / 3 < temporaries(module, images, most) <= bound * MIB


def test_batch_norm_keeps_the_images_together() -> None:
    assert images_at_once(network("conv", 16), (3, 16, 16), 1) == 0
    assert images_at_once(network("conv", 16, norm="sync"), (3, 16, 16), 1) == 0
    assert images_at_once(network("conv", 16, norm="group"), (3, 16, 16), 1) == 1


def test_small_networks_have_one_part() -> None:
    assert images_at_once(network("perceptron", 8), (3, 8, 8)) > 100_000


class TokensFirst(nn.Module):
    """Drops units of [tokens, images, units], whose rows are no images."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.drop = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(x.flatten(2).permute(2, 0, 1)).mean(0)
        return out


@pytest.mark.parametrize(
    ("layer", "most"), [(KeyedDropPath(0.5), 0), (KeyedDropout(0.5), 0), (KeyedDropPath(0.0), 1)], ids=str
)
def test_dropout_that_cannot_tell_images_apart_keeps_them_together(layer: nn.Module, most: int) -> None:
    assert images_at_once(TokensFirst(layer).train(), (3, 4, 4), 1) == most


def test_parts_are_equal_and_in_order() -> None:
    sizes: list[int] = []

    def call(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return part * 2

    images = torch.arange(11.0).unsqueeze(1)
    assert torch.equal(call_in_parts(nn.Identity(), images, 4, call), images * 2)
    assert sizes == [4, 4, 3]
    sizes.clear()
    call_in_parts(nn.Identity(), images, 0, call)
    call_in_parts(nn.Identity(), images, 11, call)
    assert sizes == [11, 11]
