"""The frozen first layers of a network run once for the images of a step, not once for each of its passes.

Frozen layers are a fixed function of an image (`fastmpl.learners.layers`), so what they gave in one pass is what they
give in another: the student's pass that learns and the tangent see the same images, and so do the two validation losses of
the scalar feedback. What a pass keeps is one tensor for each run of frozen layers, without a graph.

A frozen module's result is kept only if nothing but frozen modules ran before it, and no dropout. It is used again for
the same memory at the same version, or for a part of its rows, under the same precision, and only if nobody has written
into it. Leaves out a deferred teacher, whose two passes make their batch of views anew, and shards.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmpl.models.stochastic import active_dropouts


class _Result(NamedTuple):
    value: Tensor
    version: int


class _Entry(NamedTuple):
    """What the frozen modules gave for some images."""

    images: Tensor  # kept alive: its memory cannot become other images
    version: int
    precision: tuple[object, ...]
    results: dict[nn.Module, _Result]

    def rows_of(self, images: Tensor, precision: tuple[object, ...]) -> slice | None:
        """The rows of these images among the entry's; None where they are others."""
        mine = self.images
        same_memory = images.untyped_storage()._cdata == mine.untyped_storage()._cdata
        if not same_memory or images._version != self.version or precision != self.precision:
            return None
        if (images.dtype, images.shape[1:], images.stride()) != (mine.dtype, mine.shape[1:], mine.stride()):
            return None
        first, inside = divmod(int(images.storage_offset() - mine.storage_offset()), int(mine.stride(0)) or 1)
        if inside or first < 0 or first + len(images) > len(mine):
            return None
        return slice(first, first + len(images))


class SharedPrefix:
    """Keeps and gives again the results of the modules `frozen`, which are in evaluation mode and never change."""

    def __init__(self, network: nn.Module, frozen: list[nn.Module]) -> None:
        loose = any(p.requires_grad for p in network.parameters(recurse=False))  # used where no module shows it
        self.network, self.frozen = network, [] if loose else frozen
        self.skipped = _list_skipped(network, set(self.frozen))
        inside = {module for part in self.frozen for module in part.modules()}
        outside = [module for module in network.modules() if module not in inside]
        learns = {m for m in outside if any(p.requires_grad for p in m.parameters(recurse=False))}
        learning = [m for m in outside if m in learns or isinstance(m, _BatchNorm)]
        self.ends = [*learning, *(layer for layer in active_dropouts(network) if layer not in inside)]
        self.entries: list[_Entry] = []
        self.step_taken = False

    def end_step(self) -> None:
        """The network has taken its step: only passes that look back on it share what is kept from now on."""
        self.step_taken = True

    def forget(self, images: Tensor | None = None) -> None:
        """Drops what is kept for these images; for all of them without."""
        precision = None if images is None else _precision_of(images.device)
        self.entries = [
            each for each in self.entries if images is not None and each.rows_of(images, precision or ()) is None
        ]

    @contextmanager
    def share(self, images: Float[Tensor, "N *image"]) -> Iterator[None]:
        """A pass of the network on these images within the block uses what an earlier one kept, or keeps it."""
        precision = _precision_of(images.device)
        for entry in self.entries if self.frozen else ():
            rows = entry.rows_of(images, precision)
            if rows is not None and all(result.value._version == result.version for result in entry.results.values()):
                with self._reuse(entry, rows):
                    yield
                return
        if not self.frozen:
            yield
            return
        if self.step_taken:  # other images than those of the step: the next one begins
            self.forget()
            self.step_taken = False
        entry = _Entry(images, images._version, precision, {})
        with self._keep(entry):
            yield
        self.entries.append(entry)

    @contextmanager
    def _reuse(self, entry: _Entry, rows: slice) -> Iterator[None]:
        """Kept results in the place of the modules' own; modules whose result only such a module reads are passed over."""
        kept = entry.results
        passed_over = [module for module, reader in self.skipped.items() if reader in kept]
        for module in passed_over:
            module.__dict__["forward"] = _pass_over
        for module, result in kept.items():
            module.__dict__["forward"] = _Constant(result.value[rows])
        try:
            yield
        finally:
            for module in (*passed_over, *kept):
                del module.__dict__["forward"]

    @contextmanager
    def _keep(self, entry: _Entry) -> Iterator[None]:
        """Notes the results of frozen modules until the first module that learns, or drops units, runs."""
        calls: Counter[nn.Module] = Counter()
        is_fixed = [True]

        def end(module: nn.Module, inputs: Any) -> None:
            is_fixed[0] = False

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            calls[module] += 1
            keeps = is_fixed[0] and isinstance(output, Tensor) and output.shape[:1] == entry.images.shape[:1]
            if keeps and module not in self.skipped:
                entry.results[module] = _Result(output, output._version)

        hooks = [module.register_forward_pre_hook(end) for module in self.ends]
        hooks += [module.register_forward_hook(note) for module in self.frozen]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for module, count in calls.items():  # a module that is called twice has two results
            if count > 1:
                entry.results.pop(self.skipped.get(module, module), None)


class _Constant:
    """A forward that gives the same result always."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        return self.value


def _pass_over(x: Any) -> Any:
    return x


def _list_skipped(network: nn.Module, frozen: set[nn.Module]) -> dict[nn.Module, nn.Module]:
    """Frozen modules whose result goes to one other frozen module alone: those before the last in a plain container.

    By module, the last frozen one of the container's first run of frozen children.
    """
    skipped: dict[nn.Module, nn.Module] = {}
    for container in network.modules():
        if type(container).forward is not nn.Sequential.forward:
            continue
        run: list[nn.Module] = []
        for child in container.children():
            if child not in frozen and any(True for _ in child.parameters()):
                break
            run.append(child)
        while run and run[-1] not in frozen:  # layers without parameters behind the last frozen one
            run.pop()
        if len(run) > 1 and all(child in frozen for child in run):
            skipped |= dict.fromkeys(run[:-1], run[-1])
    return skipped


def _precision_of(device: torch.device) -> tuple[object, ...]:
    kind = device.type
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    return (torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind), *tf32)
