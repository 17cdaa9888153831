"""timm's ResNet blocks that take their sum in the last norm compute what timm's do, in every direction."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmpl.analysis.accounting import LiveBytes
from fastmpl.models.norms import use_batch_statistics
from fastmpl.models.resnet_blocks import fuse_residual_blocks
from fastmpl.models.zoo import timm_model
from fastmpl_kernels.batch_norm_act.module import fuse_batch_norm_act

NAMES = {"resnet18": 5, "resnet26d": 4, "resnext26ts": 0, "seresnet50": 0}  # blocks without a layer in the shortcut
if "resnetblur18" in timm.list_models():
    NAMES["resnetblur18"] = 5


def images(dtype: torch.dtype) -> Tensor:
    x = torch.randn(4, 3, 64, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


def pair(name: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, int]:
    """timm's network, the same with fused blocks, and how many blocks were fused. No block starts as the identity."""
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=3, zero_init_last=False).to(dtype).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    fuse_batch_norm_act(fused)
    count = fuse_residual_blocks(fused)
    return plain, fused, count


def passes(net: nn.Module) -> list[Tensor]:
    """Logits, gradients, statistics, tangent along the parameters themselves, and logits in evaluation."""
    x = images(torch.float64)
    logits = net.train()(x)
    gradients = torch.autograd.grad(logits.square().sum(), list(net.parameters()))
    weights = {name: p.detach() for name, p in net.named_parameters()}
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    with use_batch_statistics(net):
        tangent = torch.func.jvp(lambda w: functional_call(net, {**w, **buffers}, (x,)), (weights,), (weights,))[1]
    return [logits.detach(), *gradients, *buffers.values(), tangent, net.eval()(x).detach()]


@pytest.mark.parametrize("name", ["resnet18", "resnet26d"])
def test_it_computes_what_timm_does(name: str) -> None:
    plain, fused, count = pair(name, torch.float64)
    assert count == NAMES[name]
    assert list(fused.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(passes(fused), passes(plain), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("resnet18", "resnet26d")])
def test_only_blocks_whose_sum_follows_the_norm_are_fused(name: str) -> None:
    plain, fused, count = pair(name, torch.float32)
    assert count == NAMES[name]
    torch.testing.assert_close(
        fused.train()(images(torch.float32)), plain.train()(images(torch.float32)), rtol=1e-3, atol=1e-4
    )


def kept_bytes(net: nn.Module) -> int:
    """What a pass keeps for its backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = net.train()(images(torch.float32))  # which holds what is kept, so that no address is used twice
    assert logits.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", ["resnet18", "resnet26d"])
def test_it_keeps_no_more_for_the_backward_pass_than_timms_blocks(name: str) -> None:
    _, fused, _ = pair(name, torch.float32)
    plain, _, _ = pair(name, torch.float32)
    fuse_batch_norm_act(plain)
    assert kept_bytes(fused) <= kept_bytes(plain)


def test_a_pass_adds_and_activates_by_itself_where_the_shortcut_has_a_layer_alone() -> None:
    net = timm_model("resnet18", classes=3, image_shape=(3, 64, 64), dropout=0.0, norm="batch")
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with LiveBytes() as seen, torch.no_grad():
        net(images(torch.float32))
    assert sum(count for name, count in seen.by_operator.items() if name.split(".")[1] in ("relu", "relu_")) == 3
    assert seen.by_operator["aten.add_"] <= 20 + 3  # the norms' counts of batches, and the sums
    assert seen.by_operator["aten.add"] == 0
