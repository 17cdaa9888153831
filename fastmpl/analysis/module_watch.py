"""Finds modules that count in Python while they run: a replay of a captured graph does not count on.

A branch that a network takes at every n-th pass needs such a count. It is found at the first pass, however large n is.
"""

import inspect
from types import TracebackType
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from fastmpl.analysis.capture_trace import Fault, name_line

Numbers = dict[str, bool | int | float | str]


def _read_numbers(module: nn.Module) -> Numbers:
    return {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}


def _find_forward(module: nn.Module) -> str:
    code = inspect.unwrap(type(module).forward).__code__
    return name_line(code.co_filename, code.co_firstlineno)


class ModuleWatch:
    """Within it, each module called is a fault if its forward pass changes one of its Python numbers or words."""

    def __init__(self) -> None:
        self.found: dict[Fault, None] = {}
        self._before: list[Numbers] = []  # of the modules that are running, outermost first
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        self._before.clear()
        self._hooks = [
            register_module_forward_pre_hook(self._remember),
            register_module_forward_hook(self._compare, always_call=True),
        ]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def _remember(self, module: nn.Module, inputs: Any) -> None:
        self._before.append(_read_numbers(module))

    def _compare(self, module: nn.Module, inputs: Any, output: Any) -> None:
        before, after = self._before.pop(), _read_numbers(module)
        if before == after:
            return
        names = ", ".join(name for name in sorted(before | after) if before.get(name) != after.get(name))
        what = (
            f"{type(module).__name__} changes {names} in Python while it runs; count in a tensor on the device instead"
        )
        self.found[Fault("varies", what, _find_forward(module))] = None
