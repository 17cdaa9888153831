"""How long messages between ranks take, on a link that is stated: a ring within each machine, and one between machines.

N ranks on machines of g; M machines; b bytes of the larger side; a the latency of a hop. An all-reduce takes

    within   2 (g - 1) (a + b / g / inside)
    between  2 (M - 1) (a + b / (g M) / between), or by a tree 2 log2(M) a + 2 b / g / between, whichever is less

since each GPU of a machine has its own way out and sends the part of the machine that it summed. A gather or a
reduce-scatter takes half of it. Nothing overlaps with the step's arithmetic, as in the plain engine
(`fastmpl.distributed.ranks`); ranks are taken to arrive together.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from fastmpl.analysis.planner.messages import Messages


class Link(NamedTuple):
    """How fast ranks send. The defaults are an adapter of 400 Gbit/s for each GPU, and the NVLink of an A100."""

    between: float = 50e9  # bytes a second of one GPU in one direction, to another machine
    inside: float = 300e9  # the same within a machine
    latency: float = 5e-6  # seconds of a hop
    machine: int = 8  # ranks of a machine

    def machines(self, ranks: int) -> int:
        return -(-ranks // self.machine)


def time_messages(messages: Sequence[Messages], ranks: int, link: Link) -> float:
    """Seconds of all these messages, one after another."""
    return sum(_time(each, ranks, link) for each in messages)


def _time(messages: Messages, ranks: int, link: Link) -> float:
    here, machines = min(ranks, link.machine), link.machines(ranks)
    size = messages.bytes / messages.number  # of one message
    within = (here - 1) * (link.latency + size / here / link.inside)
    ring = (machines - 1) * (link.latency + size / here / machines / link.between)
    tree = math.log2(machines) * link.latency + size / here / link.between
    turns = 2 if messages.collective == "all-reduce" else 1
    return messages.number * turns * (within + min(ring, tree))
