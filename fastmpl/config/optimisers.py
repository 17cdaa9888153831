"""What each optimiser can do: one table, which the rules enforce and docs/optimisers.md shows.

How each is built, and the derivative of its update, is in `fastmpl.learners.optimiser_rows`; nothing here imports torch.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Ability(NamedTuple):
    """What an optimiser allows beside a plain step."""

    captured: bool  # a step of it can be part of a CUDA graph: it reads rate, count and skips on the device
    sharded: bool  # a slice of a parameter can be stepped without the rest of it, as ZeRO does
    moments: int  # tensors of a parameter's shape that it keeps
    package: str = ""  # what must be installed beside the requirements
    instead: str = ""  # the optimiser of the same update that is always there


# LAMB's trust ratio is the quotient of two norms over a whole parameter, and ZeRO's slices cut through parameters.
ABILITIES: Final[Mapping[str, Ability]] = {
    "sgd": Ability(captured=True, sharded=True, moments=1),
    "nesterov": Ability(captured=True, sharded=True, moments=1),
    "adamw": Ability(captured=True, sharded=True, moments=2),
    "lamb": Ability(captured=True, sharded=False, moments=2),
    "fastmpl:sgd_ema": Ability(captured=True, sharded=True, moments=1),
    "apex:FusedSGD": Ability(captured=False, sharded=True, moments=1, package="apex", instead="sgd"),
    "apex:FusedAdam": Ability(captured=True, sharded=True, moments=2, package="apex", instead="adamw"),
    "apex:FusedLAMB": Ability(captured=False, sharded=False, moments=2, package="apex", instead="lamb"),
}
