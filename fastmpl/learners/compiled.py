"""torch.compile around a network's plain passes: those that learn, label and validate.

The tangent and g' stay eager: torch.compile around forward mode gives a tangent of zero without a word, and the fused
operations become their references within it, which it can trace and fuse.
"""

import torch
from torch import Tensor, nn

from fastmpl.errors import ConfigError
from fastmpl.learners.protocol import Forward

# a pass is compiled anew for each batch size, and with and without a graph and records of its statistics
MOST_FORMS = 64


def compile_network(module: nn.Module, backend: str) -> Forward:
    """The network's forward pass, compiled as a whole by `backend` ("inductor"; "aot_eager" compiles to torch's own).

    Raises ConfigError, at its first call, where a part of the network cannot be compiled: nothing falls back.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_FORMS)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    network = torch.compile(module, backend=backend, fullgraph=True, dynamic=False)

    def call(images: Tensor) -> Tensor:
        try:
            return network(images)  # type: ignore[no-any-return]
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(
                f"{type(module).__name__} cannot be compiled ({reason}): set system.compile = false."
            ) from error

    return call
