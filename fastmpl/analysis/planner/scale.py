"""What a run needs at a number of ranks and images beside its memory, and which need meets its limit first.

Each need is a number and the limit that it is compared with. What the numbers are made of was measured on a CPU and is in
the records of `benchmarks/results` (tests/analysis/planner/test_scale.py compares); what a machine has is stated in
`Machine`. Leaves out evaluations, and what others do on the same disk.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from fastmpl.analysis.planner.duration import LAUNCHES, Pace
from fastmpl.analysis.planner.link import Link, time_messages
from fastmpl.analysis.planner.messages import Messages, count_messages
from fastmpl.analysis.planner.plan import SHARDINGS, Fit, MemoryPlan
from fastmpl.config import Config, batch_sizes, without_feedback
from fastmpl.config.meaning import decodes_always

DECODED: Final = 4.0e-3  # CPU seconds of an image with two views, RandAugment on one (record `loader`)
ENCODED: Final = 91_000  # bytes of such a JPEG, 500 x 375 pixels (record `loader`)
LISTED: Final = 150  # bytes of a rank for each image that the data has (record `listing`)
LISTING: Final = 3.8e-6  # seconds to list an image, by a file list (record `listing`)
STORED: Final = 66  # bytes of an image in a store of the 16 likeliest classes (record `store`)
ASKED: Final = 14  # calls a second of one rank to rank 0's store: five in each check of its StopAgreement, and more
ANSWERED: Final = 37e-6  # CPU seconds of rank 0 for one of them, on a busy host (record `scale`)
FEW: Final = 8  # images below which a batch norm's statistics are mostly noise


class Machine(NamedTuple):
    """What a machine has for its ranks, and how much of it a need may take."""

    cores: int = 96  # which may all decode
    memory: float = 250e9  # bytes of the host for lists of images: a quarter of 1 TB
    reading: float = 2e9  # bytes a second of the disk that it reads
    writing: float = 1e9
    messages: float = 0.1  # share of a step


class Need(NamedTuple):
    """Something that grows with ranks or images, and its limit."""

    name: str
    amount: str  # in words
    load: float  # share of the limit; 1 and more: it breaks
    remedy: str


class ScalePlan(NamedTuple):
    """What a run needs at its number of ranks."""

    ranks: int
    machines: int
    link: Link
    messages: list[Messages]  # of a step that credits
    every: int  # such a step is one in so many: `feedback.every`
    sending: float  # seconds of a step, in the mean
    step: float  # seconds, with `sending`
    is_small: bool  # the step is longer than its arithmetic says, and `step` the least that it takes
    rate: float  # images a second of a rank
    decodes: bool  # at every step
    images: int  # of the data; 0: not known
    checkpoint: int  # bytes that one process writes
    needs: list[Need]  # the one closest to its limit first

    @property
    def share(self) -> float:
        """The part of a step in which messages travel."""
        return self.sending / self.step


def plan_scale(
    config: Config, plan: MemoryPlan, fit: Fit, pace: Pace, *, images: int = 0, link: Link | None = None
) -> ScalePlan:
    """What the setting `fit` of `plan` needs. pace: of a step's arithmetic, or of a measured step.

    images: of the data; 0: not known.
    """
    link, ranks = link or Link(), plan.ranks
    stage = SHARDINGS[fit.sharding][0] or None
    messages = count_messages(config, plan.exchanged, ranks, classes=plan.classes, stage=stage)
    sending, every = time_messages(messages, ranks, link), config.feedback.every
    if every > 1:
        others = count_messages(without_feedback(config), plan.exchanged, ranks, classes=plan.classes, stage=stage)
        sending = (sending + (every - 1) * time_messages(others, ranks, link)) / every
    step = max(pace.seconds, LAUNCHES) + (0 if pace.sent_by == ranks else sending)
    seen = sum(plan.batches.values())
    whole = plan.states["copies"].lasting
    found = ScalePlan(
        ranks,
        link.machines(ranks),
        link,
        messages,
        every,
        sending,
        step,
        pace.seconds < LAUNCHES,
        seen / step,
        decodes_always(config.data),
        images,
        whole // ranks if stage else whole,
        [],
    )
    needs = sorted(_list_needs(config, plan, found, Machine()), key=lambda need: need.load, reverse=True)
    return found._replace(needs=needs)


def uneven_batches(config: Config, ranks: int) -> list[str]:
    """A sentence for each batch that the ranks cannot share, with the nearest size above it that they can."""
    unit, found = ranks * config.system.accumulate, []
    for name, size in batch_sizes(config).items():
        if size % unit and getattr(config.data, name):  # 0 trusted images: as many as labelled ones, which are told
            fitting = -(-size // unit) * unit
            found.append(f"data.{name} = {size} is not a multiple of {unit}; set {fitting}.")
    return found


def _list_needs(config: Config, plan: MemoryPlan, found: ScalePlan, machine: Machine) -> Iterator[Need]:
    here = min(found.ranks, found.link.machine)  # ranks of a machine
    if found.ranks > 1:
        yield from _list_needs_of_ranks(config, plan, found, machine)
    if found.decodes:
        cores, read = found.rate * here * DECODED, found.rate * here * ENCODED
        remedy = "GPUs that decode (a CUDA build of DALI), or fastmpl pack --size"
        yield Need("decoding", f"{cores:,.0f} cores of a machine", cores / machine.cores, remedy)
        remedy = "a disk in each machine, or fastmpl pack --size"
        yield Need("reading", f"{read / 1e9:.2g} GB/s of a machine", read / machine.reading, remedy)
    if found.images:
        size = LISTED * found.images * here
        remedy = "fewer ranks on a machine of more memory for each"
        yield Need("lists of images", f"{size / 1e9:.2g} GB of a machine", size / machine.memory, remedy)
    written = found.checkpoint / machine.writing
    remedy = "a larger run.checkpoint_every; ZeRO writes in parts"
    yield Need("checkpoints", f"{written:.2g} s each", written / (config.run.checkpoint_every * found.step), remedy)


def _list_needs_of_ranks(config: Config, plan: MemoryPlan, found: ScalePlan, machine: Machine) -> Iterator[Need]:
    """What a single process does not need."""
    if any(network.local_norms for network in plan.exchanged.values()):
        seen = plan.batches["batch_labelled"] / config.system.accumulate
        remedy = 'norm = "sync" or "group", or a larger data.batch_labelled'
        images = "one labelled image" if seen == 1 else f"{seen:.0f} labelled images"
        yield Need("batch norm", f"statistics of {images} of a rank", FEW / seen, remedy)
    if not found.is_small:
        remedy = "more images a rank; after ZeRO 3, a lower stage"
        yield Need("messages", f"{100 * found.share:.2g} % of a step", found.share / machine.messages, remedy)
    if found.images:
        seconds = LISTING * found.images
        remedy = "a larger system.timeout: ranks wait that long for the slowest"
        yield Need("listing", f"{seconds:,.0f} s before the first step", seconds / config.system.timeout, remedy)
    busy = ASKED * found.ranks * ANSWERED
    yield Need("heartbeats", f"{100 * busy:.2g} % of a core of rank 0", busy, "fewer, larger ranks")
