"""torch's optimisers without torch's compiler.

torch.optim wraps methods of its optimisers so that torch.compile leaves them out, and the wrappers import torch._dynamo:
over a second of CPU time before the first step. No optimiser is compiled here, so the methods are taken as they are.
"""

import inspect
from collections.abc import Callable
from functools import cache

import torch


@cache
def without_compiler(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The same optimiser, whose constructor and step do not import torch._dynamo. Its step builds no graph."""
    methods = {
        "add_param_group": inspect.unwrap(kind.add_param_group),
        "step": torch.no_grad()(inspect.unwrap(kind.step)),
    }
    return type(kind.__name__, (kind,), methods)
