"""Which images share a pass, and so their batch statistics: the same mathematics at different cost.

In units of B images, a forward costing 1 and a backward 2, with U = 7 B, scalar feedback and consistency loss: the
published order costs 70, `split` 54, `split` deferred 62 at about half the memory.
"""

from typing import NamedTuple

from fastmpl.methods.mpl import MetaPseudoLabels
from fastmpl.methods.views import View


class Order(NamedTuple):
    """Which views share a pass, and so their batch statistics."""

    teacher: tuple[View, ...]  # one pass with a graph
    observed: tuple[View, ...]  # one pass of the teacher without a graph
    student: tuple[View, ...]
    deferred: bool = False  # label without a graph, build the teacher's graph after the student's step


def split(method: MetaPseudoLabels, *, deferred: bool = False) -> Order:
    """What needs no gradient runs without a graph, and the student sees its unlabelled images alone."""
    with_graph: set[View] = {"labelled", method.label_view}
    if method.consistency is not None:
        with_graph.add("strong")
    order: tuple[View, ...] = ("labelled", "weak", "strong")
    observed: tuple[View, ...] = ("weak",) if method.consistency is not None and "weak" not in with_graph else ()
    return Order(tuple(view for view in order if view in with_graph), observed, ("strong",), deferred)


def joint(method: MetaPseudoLabels, *, deferred: bool = False) -> Order:
    """The published order: every view in one batch of the teacher, labelled and strong in one of the student."""
    return Order(("labelled", "weak", "strong"), (), ("labelled", "strong"), deferred)
