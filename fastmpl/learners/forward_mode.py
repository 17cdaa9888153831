"""Finds a layer that forward mode cannot pass: one whose operator raises, or whose operator loses the tangent silently.

Operators made by `torch.library.custom_op`, and collectives, give no tangent and no error. The learner's own tangent runs
here with zeros for a direction: under FakeTensorMode there is no arithmetic.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.protocol import TangentPass, Update


class MissingForwardMode(NamedTuple):
    """A layer that the tangent does not get through."""

    layer: str  # its name in the network; empty for the network itself
    kind: str  # its class
    reason: str


class _Running:
    """The modules of a network that are running, outermost first."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.names = {module: name for name, module in network.named_modules()}
        self.modules: list[nn.Module] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        hooks: list[Any] = []
        for module in self.names:
            hooks.append(module.register_forward_pre_hook(lambda module, inputs: self.modules.append(module)))
            hooks.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.modules.pop()  # a module that raised stays, and names the place

    def describe(self, reason: str) -> MissingForwardMode:
        module = self.modules[-1] if self.modules else self.network
        return MissingForwardMode(self.names[module], type(module).__name__, reason)


class _SilentLosses(TorchFunctionMode):
    """Tells of each operator of a library that is given a tangent and returns none."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # inside an autograd.Function forward mode is off: the function has a rule of its own
        if isinstance(func, OpOverload | OpOverloadPacket) and torch._C._is_fwd_grad_enabled():
            floats = [leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            if floats and _has_tangent((args, kwargs)) and not _has_tangent(floats):
                self.tell(f"{func} loses the tangent")
        return result


def _has_tangent(tree: Any) -> bool:
    def tangent_of(leaf: Tensor) -> Tensor | None:
        return forward_ad.unpack_dual(leaf).tangent  # type: ignore[no-untyped-call,no-any-return]

    return any(isinstance(leaf, Tensor) and tangent_of(leaf) is not None for leaf in tree_iter(tree))


def find_missing_forward_mode(learner: PlainLearner, images: Float[Tensor, "N *image"]) -> MissingForwardMode | None:
    """The first layer that the learner's tangent on these images does not get through; None where it gets to the end."""
    old = {name: p.detach() for name, p in learner.parameters.items()}
    zeros = {name: torch.zeros_like(p) for name, p in old.items()}
    zero = torch.zeros(())
    update = Update(zero, zero, zero, old, zeros)
    direction = {name: zeros[name] for name in learner.moving}
    running = _Running(learner.module)
    lost: list[MissingForwardMode] = []
    try:
        with running.watch(), _SilentLosses(lambda reason: lost.append(running.describe(reason))):
            learner.tangents(update, [TangentPass(images, zero, torch.zeros((), dtype=torch.int64))], direction)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        if not lost:
            lost.append(running.describe((str(error) or type(error).__name__).splitlines()[0].rstrip(".")))
    return lost[0] if lost else None
