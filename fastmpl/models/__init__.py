"""Networks: small ones of this project and any timm classifier, made fit for feedback.

Feedback needs three things of a network: random draws that can be repeated (`stochastic`), batch statistics that can be
used without being recorded (`norms`), and a forward-mode derivative through every layer.
"""

from fastmpl.models.build import build, build_network
from fastmpl.models.errors import ModelError
from fastmpl.models.norms import use_batch_statistics
from fastmpl.models.stochastic import KeyedDropout, KeyedDropPath, replace_dropout, set_draw
from fastmpl.models.sync_norm import synchronise
from fastmpl.models.twin import twin

__all__ = [
    "KeyedDropPath",
    "KeyedDropout",
    "ModelError",
    "build",
    "build_network",
    "replace_dropout",
    "set_draw",
    "synchronise",
    "twin",
    "use_batch_statistics",
]
