"""Low-rank adapters (Hu et al. 2022, "LoRA"): the trained weights stay, and each layer learns a difference of rank r.

    W x  ->  W x + B A x,    A [r, inputs], B [outputs, r], B = 0 at the start

Linear layers and convolutions of one group get adapters, the classifier does not: it is trained whole. Everything else is
frozen. `merge_adapters` adds B A to W, so that a network that leaves a run is an ordinary one.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fastmpl.models.errors import ModelError
from fastmpl.models.pretrained import classifier_of

A, B = "adapter_a", "adapter_b"  # names of the parameters, beside `weight`


def _init(owner: nn.Module, a: Tensor, b: Tensor) -> None:
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))  # as a linear layer's own weight
    nn.init.zeros_(b)
    owner.adapter_a, owner.adapter_b = nn.Parameter(a), nn.Parameter(b)


class AdaptedLinear(nn.Linear):
    """A linear layer and its adapter."""

    adapter_a: Float[nn.Parameter, "r inputs"]
    adapter_b: Float[nn.Parameter, "outputs r"]

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        weight = linear.weight.detach()
        _init(self, weight.new_empty(rank, linear.in_features), weight.new_empty(linear.out_features, rank))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + F.linear(F.linear(input, self.adapter_a), self.adapter_b)


class AdaptedConv2d(nn.Conv2d):
    """A convolution and its adapter: A has the kernel of the convolution, B is of 1 x 1."""

    adapter_a: Float[nn.Parameter, "r inputs height width"]
    adapter_b: Float[nn.Parameter, "outputs r"]

    def __init__(self, convolution: nn.Conv2d, rank: int) -> None:
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,  # type: ignore[arg-type]
            convolution.stride,  # type: ignore[arg-type]
            convolution.padding,  # type: ignore[arg-type]
            convolution.dilation,  # type: ignore[arg-type]
            bias=convolution.bias is not None,
            device="meta",
        )
        self.weight, self.bias = convolution.weight, convolution.bias
        weight = convolution.weight.detach()
        _init(self, weight.new_empty(rank, *weight.shape[1:]), weight.new_empty(len(weight), rank))

    def forward(self, input: Tensor) -> Tensor:
        inner = self._conv_forward(input, self.adapter_a, None)
        return super().forward(input) + F.conv2d(inner, self.adapter_b[:, :, None, None])


def adapter_rank(adapter: str) -> int:
    """The rank r of `lora:r`; 0 where there is no adapter."""
    return int(adapter.partition(":")[2]) if adapter else 0


def _make_adapted(module: nn.Module, rank: int) -> nn.Module | None:
    """The layer with an adapter of `rank`, or of as many as it has inputs or outputs; None where it gets none."""
    if type(module) is nn.Linear:
        return AdaptedLinear(module, min(rank, module.in_features, module.out_features))
    if type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros":
        return AdaptedConv2d(module, min(rank, module.weight[0].numel(), module.out_channels))
    return None


def add_adapters(network: nn.Module, rank: int, seed: int) -> int:
    """Gives the layers of `network` adapters and freezes all else but the classifier; returns how many layers have one.

    Their parameters are a pure function of `seed`. Raises ModelError where no layer can have one.
    """
    classifier = network.get_submodule(classifier_of(network))
    kept = {id(parameter) for parameter in classifier.parameters()}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    made: dict[nn.Module, nn.Module | None] = {}  # a layer that is used twice has one adapter
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for parent in list(network.modules()):
            for name, child in list(parent._modules.items()):  # named_children leaves out a layer's second name
                if child is None or child is classifier:
                    continue
                if child not in made:
                    made[child] = _make_adapted(child, rank)
                layer = made[child]
                if layer is not None:
                    setattr(parent, name, layer.train(child.training))
    adapted = sum(layer is not None for layer in made.values())
    if not adapted:
        raise ModelError(
            f'adapter = "lora:{rank}" finds no layer to adapt: before its classifier this network has neither linear '
            'layers nor convolutions of one group. Set adapter = "" or use another network.'
        )
    return adapted


def merge_adapters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without adapters: each weight with its B A added; unchanged where there are none."""
    merged = {name: value for name, value in tensors.items() if name.rpartition(".")[2] not in (A, B)}
    for name in tensors:
        layer, _, last = name.rpartition(".")
        if last == A:
            a, b = tensors[name], tensors[f"{layer}.{B}"]
            weight = merged[f"{layer}.weight"]
            # in float64: a merged network should differ from the adapted one by the rounding of its passes alone
            change = b.double().reshape(-1, len(a)) @ a.double().reshape(len(a), -1)
            merged[f"{layer}.weight"] = (weight.double() + change.view_as(weight)).to(weight.dtype)
    return merged
