"""Counts the messages between ranks in one step, from the configuration and the networks; nothing is run.

P, S: elements of the teacher's and the student's parameters that learn; G: those of the student that the feedback moves;
N ranks; a micro-batches; C channels of a synchronised norm. With whole networks on each rank a step sends

    all-reduce   S                  the student's gradient
    all-reduce   P                  the teacher's gradient
    all-reduce   1                  the scalar feedback, or
    all-reduce   G                  the gradient g' of exact feedback
    all-gather   U K                the credits, where a control shuffles them
    all-reduce   2 C + 1, or 2 C    a synchronised norm's sums, a forward or a backward pass

in messages of at most `LARGEST` elements. ZeRO 1 and 2 gather the parameters after each update, and both sets of
parameters of exact feedback's tangent; a norm of shards is a message of one number. ZeRO 3 gathers the parameters for each
pass, and reduces g' after each of the a. How many of these gathers DeepSpeed saves, because parameters are still there, is
its own affair, so numbers of stage 3 are bounds from above. With `feedback.every` the step is one that credits. Recomputed
blocks take their norms' sums again; all norms are counted as if they were recomputed.

Not counted: the metrics, one message of some hundred bytes every `run.log_every` steps, evaluations, checkpoints.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmpl.analysis.planner.state_bytes import FLOAT, Stage
from fastmpl.config import Config, feeds_back, learns_unlabelled
from fastmpl.distributed.ranks import LARGEST
from fastmpl.learners.blocks import names_in_last_blocks
from fastmpl.learners.zero.settings import BUCKET
from fastmpl.models.sync_norm import SumOverRanks, SyncBatchNorm
from fastmpl.run.build import choose_order, mpl_of, single_network_method
from fastmpl_kernels.batch_norm_act.module import BatchNormAct2d

Collective = Literal["all-reduce", "all-gather", "reduce-scatter"]
DOUBLE: Final = 8  # bytes
ALIGNED: Final = 2  # elements that a rank's part of a flat row of DeepSpeed's is a multiple of


class Messages(NamedTuple):
    """The messages of one step that have one purpose."""

    purpose: str
    collective: Collective
    number: int
    elements: int  # of all these messages together, of the larger side of each: what a rank has before or after it
    size: int = FLOAT  # bytes of an element

    @property
    def bytes(self) -> int:
        return self.elements * self.size


class SharedNorm(NamedTuple):
    """A norm with the statistics of all ranks."""

    channels: int
    fused: bool  # with its activation; the other form gathers means and variances
    moves: bool  # whether the feedback's gradient and tangent go through it


class Exchanged(NamedTuple):
    """What of a network ranks send."""

    learning: tuple[int, ...]  # elements of each parameter that learns
    moving: tuple[int, ...]  # of those that the feedback moves
    layers: tuple[tuple[int, int], ...]  # of each module with parameters: elements that learn, and of those that move
    norms: tuple[SharedNorm, ...]
    local_norms: int  # norms with the statistics of a rank's own images


class _Passes(NamedTuple):
    """Passes through a network in one step of a rank."""

    forward: int
    backward: int
    validation: int = 0  # forward and backward passes that give g'
    tangent: int = 0  # in forward mode


def exchanged_of(network: nn.Module, depth: int = 0) -> Exchanged:
    """What of a network ranks send. depth: `feedback.depth`, for the student."""
    moving = names_in_last_blocks(network, depth)
    learning = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
    layers, norms, local = [], [], 0
    for path, module in network.named_modules():
        every = (f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False))
        own = [name for name in every if name in learning]  # a shared one counts where it is first
        if not own:
            continue
        layers.append((sum(learning[name] for name in own), sum(learning[name] for name in own if name in moving)))
        fused = isinstance(module, BatchNormAct2d) and isinstance(module.reduce, SumOverRanks)
        if fused or isinstance(module, SyncBatchNorm):
            norms.append(SharedNorm(module.num_features, fused, any(name in moving for name in own)))
        elif isinstance(module, _BatchNorm):
            local += 1
    return Exchanged(
        tuple(learning.values()),
        tuple(count for name, count in learning.items() if name in moving),
        tuple(layers),
        tuple(norms),
        local,
    )


def count_messages(
    config: Config, networks: Mapping[str, Exchanged], ranks: int, *, classes: int, stage: Stage | None = None
) -> list[Messages]:
    """The messages of one step of `ranks` ranks. stage: of ZeRO; None: a copy of the networks on each rank."""
    if ranks == 1:
        return []
    found = []
    for role, network in networks.items():
        passes = _count_passes(config, role)
        found += list(_update(role, network, passes, ranks, stage))
        found += list(_norms(role, network.norms, passes, ranks))
    return found + list(_credit(config, networks["student"], ranks, classes, stage))


def _count_passes(config: Config, role: str) -> _Passes:
    parts, again = config.system.accumulate, config.system.recompute
    if config.method.name not in ("mpl", "reduced_mpl"):
        labels = learns_unlabelled(config) and single_network_method(config).labeller == "self"
        return _Passes(parts * (1 + again + labels), parts)
    order = choose_order(config, mpl_of(config))
    if role == "teacher":
        return _Passes(parts * (1 + again + bool(order.observed) + order.deferred), parts)
    if not feeds_back(config):
        return _Passes(parts * (1 + again), parts)
    if config.feedback.kind == "scalar":
        return _Passes(parts * (3 + again), parts)
    if config.feedback.tangent == "difference":
        return _Passes(parts * (2 + again), parts, validation=parts)
    return _Passes(parts * (1 + again), parts, validation=parts, tangent=parts)


def _update(role: str, network: Exchanged, passes: _Passes, ranks: int, stage: Stage | None) -> Iterator[Messages]:
    """What the optimiser's step of a network needs of the other ranks."""
    elements, purpose = sum(network.learning), f"{role}'s gradient"
    if not stage:
        most = LARGEST if stage is None else BUCKET
        yield Messages(purpose, "all-reduce", count_parts(network.learning, most), elements)
        return
    if stage == 3:
        gathers = passes.forward + passes.backward + 2 * passes.validation
        padded = sum(-(-size // ranks) * ranks for size in network.learning)
        yield Messages(f"{role}'s parameters", "all-gather", gathers * len(network.layers), gathers * padded)
        yield Messages(purpose, "reduce-scatter", count_parts(network.learning, BUCKET), padded)
    else:
        yield Messages(purpose, "all-reduce", count_parts(network.learning, BUCKET), elements)
        yield Messages(f"{role}'s parameters", "all-gather", -(-elements // BUCKET), _row(elements, ranks))
    yield Messages(f"norm of {purpose}", "all-reduce", 1, 1)


def _credit(config: Config, student: Exchanged, ranks: int, classes: int, stage: Stage | None) -> Iterator[Messages]:
    """What the feedback needs of the other ranks."""
    if not feeds_back(config):
        return
    feedback, parts = config.feedback, config.system.accumulate
    if feedback.kind == "scalar":
        yield Messages("scalar feedback", "all-reduce", 1, 1)
        return
    yield from _tangent(student, parts, ranks, stage, feedback.tangent)
    if feedback.control == "shuffled":
        rows = config.data.batch_unlabelled // ranks * ranks
        yield Messages("shuffled credits", "all-gather", 1, rows * (1 if feedback.kind == "per_example" else classes))


def _tangent(
    student: Exchanged, parts: int, ranks: int, stage: Stage | None, form: Literal["jvp", "difference"]
) -> Iterator[Messages]:
    """The gradient g', and what the tangent along it gathers; stage 3 sends both for each of `parts` micro-batches."""
    moving, whole = sum(student.moving), sum(student.learning)
    if not stage:
        yield Messages("g' of the feedback", "all-reduce", count_parts(student.moving, LARGEST), moving)
        return
    yield Messages("decrease of the loss", "all-reduce", 1, 1)
    if form == "difference":
        yield Messages("length of the difference", "all-reduce", 1, 3)
    if stage < 3:
        row = _row(whole, ranks)
        yield Messages("g' of the feedback", "reduce-scatter", 1, row)
        sets = 1 if form == "difference" else 2
        yield Messages("parameters of the tangent", "all-gather", sets, sets * row)
        return
    padded = sum(-(-size // ranks) * ranks for size in student.learning)
    yield Messages("g' of the feedback", "reduce-scatter", parts, parts * padded)
    if form == "jvp":
        gathered = sum(-(-size // ranks) * ranks for layer in student.layers for size in layer)
        yield Messages("parameters of the tangent", "all-gather", parts * len(student.layers), parts * gathered)


def _norms(role: str, norms: Sequence[SharedNorm], passes: _Passes, ranks: int) -> Iterator[Messages]:
    """The sums of synchronised norms.

    A fused one sends float64, and the sums of its tangent in the message of its value's. The other form gathers means and
    variances, and sends the sums of a gradient or a tangent.
    """
    values = passes.forward + passes.validation + passes.tangent
    fused = gathered = summed = 0  # messages
    of_fused = of_gathered = of_summed = 0  # elements
    for norm in norms:
        gradients = passes.backward + norm.moves * passes.validation
        tangents = norm.moves * passes.tangent
        if norm.fused:
            fused += values + gradients
            of_fused += values * (2 * norm.channels + 1) + (gradients + tangents) * 2 * norm.channels
        else:
            gathered += values
            of_gathered += values * 2 * norm.channels * ranks
            summed += gradients + tangents
            of_summed += (gradients + tangents) * 2 * norm.channels
    purpose = f"{role}'s norms"
    every = (
        Messages(purpose, "all-reduce", fused, of_fused, DOUBLE),
        Messages(purpose, "all-gather", gathered, of_gathered),
        Messages(purpose, "all-reduce", summed, of_summed),
    )
    yield from (messages for messages in every if messages.number)


def count_parts(sizes: Sequence[int], most: int) -> int:
    """The messages that tensors of these sizes travel in, in their order, of at most `most` elements each."""
    count = room = 0
    for size in sizes:
        if not count or size > room:
            count, room = count + 1, most
        room -= size
    return count


def _row(elements: int, ranks: int) -> int:
    """The length of DeepSpeed's row of all parameters, filled up so that each rank has an equal part."""
    return -(-elements // (ALIGNED * ranks)) * ALIGNED * ranks
