"""The norms that read the sums of a residual network take them, and the numbers are those of sums taken by themselves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastmpl.analysis.accounting import LiveBytes
from fastmpl.learners.recompute import recompute_blocks
from fastmpl.models import build
from fastmpl.models.norms import Norm, PendingSum
from fastmpl.models.wide_resnet import WideResNet


def network(norm: Norm = "batch") -> WideResNet:
    built = build("wrn_16_1", classes=3, image_shape=(3, 8, 8), dropout=0.0, norm=norm, width=16, depth=2, seed=0)
    assert isinstance(built, WideResNet)
    return built.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def images() -> Tensor:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


def take_sums_at_once(net: WideResNet) -> WideResNet:
    def take(block: nn.Module, inputs: object, output: Tensor | PendingSum) -> Tensor:
        return output.take() if isinstance(output, PendingSum) else output

    for block in net.blocks:
        block.register_forward_hook(take)
    return net


def learn(net: WideResNet, run: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """The logits, all gradients and all statistics of a pass."""
    logits = (net if run is None else run)(images())
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad for p in net.parameters() if p.grad is not None), *net.buffers()]


@pytest.mark.parametrize("norm", ["batch", "group", "sync"])
def test_every_bit_is_that_of_sums_taken_at_once(norm: Norm) -> None:
    found, expected = learn(network(norm)), learn(take_sums_at_once(network(norm)))
    assert len(found) == len(expected) > 20
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_recomputation_gives_the_same() -> None:
    net, draw = network(), torch.zeros((), dtype=torch.int64)

    def run(x: Tensor) -> Tensor:
        with recompute_blocks(net, draw):
            logits: Tensor = net(x)
        return logits

    torch.testing.assert_close(learn(net, run), learn(network()), rtol=1e-6, atol=1e-6)


def test_no_sum_is_an_operator_of_its_own() -> None:
    net = network()
    with LiveBytes() as seen:
        loss = net(images()).square().sum()
        loss.backward()
    assert seen.by_operator["fastmpl.bn_add_train"] == len(net.blocks) == 6
    assert seen.by_operator["fastmpl.bn_add_backward"] == 3  # identities of a sum: where a block reshapes there is none
    assert seen.by_operator["aten.add"] == 3  # of gradients: at the stem's output, and at the two blocks that reshape


def test_a_compiler_traces_the_sums_too() -> None:
    net = network()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(learn(net, compiled), learn(network()), rtol=1e-4, atol=1e-5)


def test_a_block_in_evaluation_gives_its_sum() -> None:
    block = network().eval().blocks[0]
    assert isinstance(block(torch.randn(2, 16, 8, 8)), Tensor)
