"""The schemas of checkpoints, and what a version reads of an older one.

Schema 1 (0.1.0): networks, optimisers, steps, and the unfinished line of metrics. Schema 2 adds `recent_skips`, the skipped
updates of the last steps, from which divergence is judged. Schema 3 adds the last column of `meter`, `feedback_ratio`.
"""

from typing import TYPE_CHECKING, Final

from fastmpl.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA: Final = 3
OLDEST: Final = 1
RECENT_SKIPS: Final = "recent_skips"


def require_known(schema: object, where: object) -> int:
    """The schema of a manifest. Raises StorageError, naming both versions, if this version cannot read it."""
    if not isinstance(schema, int) or isinstance(schema, bool) or not OLDEST <= schema <= SCHEMA:
        raise StorageError(f"{where} has schema {schema!r}; this version reads {OLDEST} to {SCHEMA}.")
    return schema


def migrate(schema: int, tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The tensors of a checkpoint of `schema` as this version names them."""
    import torch  # takes seconds: manifests are read without it

    from fastmpl.telemetry.skip_window import STEPS

    if schema < 2:
        tensors = {RECENT_SKIPS: torch.zeros(STEPS)} | tensors
    if schema < 3 and "meter" in tensors:
        tensors = tensors | {"meter": torch.nn.functional.pad(tensors["meter"], (0, 1))}
    return tensors
