"""Prints a memory plan as lines of text: what is counted, what fits, one recommended setting, and how long it takes."""

from collections.abc import Iterator, Sequence
from textwrap import wrap

from fastmpl.analysis.planner.duration import LAUNCHES, Pace
from fastmpl.analysis.planner.plan import Fit, MemoryPlan
from fastmpl.analysis.planner.recommend import ROOM, Recommendation
from fastmpl.config import Config
from fastmpl.config.wording import toml

GIB = 2**30
WIDTH = 79  # columns
WORDS = {
    "kept": "what exact feedback keeps of the student: its parameters before the step, and its gradient",
    "gathered": "the most that exact feedback adds at one moment",
    "activations": "bytes that grow with the batch: what the backward passes need, and the images",
    "beside them": "gradients and copies that exist at the same moment",
    "host": "bytes in the host's memory, in the place of a GPU's",
    "copies": "every GPU holds everything; ZeRO 1 divides optimiser and average among the GPUs, 2 also gradients, 3 also "
    "parameters; offload: the optimiser in host memory",
    "joint": "all views in one pass, as published",
    "split": "views that need no gradient are passed without keeping activations",
    "deferred": "the teacher's graph is built after the student's step",
    "recomputed": "blocks are computed again in the backward pass",
}
NOTE = (
    "Not counted: a process's own memory on a GPU (0.5 to 1 GiB), workspaces of cuDNN, fragmentation, messages in flight, "
    f"images being decoded. A setting is recommended if it leaves {100 * (1 - ROOM):.0f} % of the memory for these."
)


def format_plan(plan: MemoryPlan) -> Iterator[str]:
    """Lines with the networks, the bytes of each sharding, the cost of each schedule, and what fits."""
    for role, size in plan.networks.items():
        frozen = f", of which {size.frozen:,} are frozen" if size.frozen else ""
        yield f"{role:9} {size.elements:,} parameters{frozen}"
    counts = ", ".join(f"{count:,} {name.removeprefix('batch_')}" for name, count in plan.batches.items())
    yield f"a rank    of {plan.ranks}: {counts} images a step"
    yield from _describe_tangent(plan)
    yield ""
    yield from _tabulate_state(plan)
    yield ""
    unit, word = _choose_unit([size for cost in plan.costs.values() for size in cost[:2]])
    yield from _align(
        [f"{word} of a rank's step", "activations", "beside them", "TFLOP"],
        [
            [name, f"{cost.activations / unit:.2f}", f"{cost.overlap / unit:.2f}", f"{cost.flops / 1e12:,.3g}"]
            for name, cost in plan.costs.items()
        ],
    )
    yield ""
    unit, word = _choose_unit([fit.peak for fit in plan.fits])
    yield f"Peak in {word}, and how many times the configured batch {plan.memory / GIB:g} GiB hold:"
    by_sharding = {name: [_format_fit(c, unit) for c in plan.fits if c.sharding == name] for name in plan.states}
    yield from _align(["", *plan.costs], [[name, *row] for name, row in by_sharding.items()])
    yield ""
    shown = " ".join(plan.costs)
    hidden = [word for word in ("joint", "split", "deferred", "recomputed") if word not in shown]
    hidden += [] if any(found.kept for found in plan.gathered.values()) else ["kept", "gathered"]
    for meant, meaning in WORDS.items():
        if meant not in hidden:
            yield from wrap(f"{meant:13}{meaning}", WIDTH, subsequent_indent=" " * 13)
    yield ""
    yield from wrap(NOTE, WIDTH)


def format_recommendation(plan: MemoryPlan, found: Recommendation | None, config: Config) -> Iterator[str]:
    """The setting to take, the keys of it that `config` has otherwise, as options; or what to change where none fits."""
    if found is None:
        least = min(plan.fits, key=lambda fit: fit.peak)
        yield f"recommended  nothing fits: {least.sharding} with {least.schedule} needs least, {least.peak / GIB:.2f} GiB."
        yield "             Lower data.batch_unlabelled, data.image_size or the networks, or use more GPUs."
        return
    fit = found.fit
    unit, word = _choose_unit([fit.peak])
    yield f"recommended  {fit.sharding}; {fit.schedule}: {fit.peak / unit:.1f} {word} of {plan.memory / GIB:g} GiB"
    options = [f"--{key}\0{_as_option(value)}" for key, value in found.keys.items() if _value_of(config, key) != value]
    said = " ".join(options) or "nothing: the configuration is this setting already"
    for line in wrap(f"set          {said}", WIDTH, subsequent_indent=" " * 13, break_on_hyphens=False):
        yield line.replace("\0", " ")  # an option and its value stay together


def format_duration(steps: int, pace: Pace) -> str:
    """Hours of `steps` steps, and where the speed comes from."""
    if pace.seconds < LAUNCHES:
        return (
            "time         not by arithmetic: a step this small takes as long as its kernels\n"
            f"             take to start. Train a few, and add --measured RUN for {steps:,} steps."
        )
    hours = steps * pace.seconds / 3600
    amount = f"{hours:,.0f} hours" if hours >= 10 else f"{hours:.1f} hours" if hours >= 0.1 else f"{3600 * hours:.0f} s"
    return f"time         {amount} for {steps:,} steps of {pace.seconds:.3g} s,\n             {pace.source}"


def _value_of(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    found: object = getattr(getattr(config, section), name)
    return found


def _as_option(value: object) -> str:
    return value if isinstance(value, str) else toml(value)


def _describe_tangent(plan: MemoryPlan) -> Iterator[str]:
    """A line where the forward-mode pass of exact feedback goes through the images in parts."""
    if plan.tangent is not None and plan.tangent.parts > 1:
        yield f"tangent   in {plan.tangent.parts} parts of at most {plan.tangent.images:,} images, to bound its temporaries"


def _tabulate_state(plan: MemoryPlan) -> Iterator[str]:
    """The state of both networks, and what the credit phase keeps and gathers, in MiB or GiB."""
    rows = {
        name: (
            s.parameters,
            s.gradients,
            s.optimiser,
            s.average,
            s.host,
            plan.gathered[name].kept,
            plan.gathered[name].credit,
        )
        for name, s in plan.states.items()
    }
    unit, word = _choose_unit([size for row in rows.values() for size in row])
    header = [f"{word} of a rank", "parameters", "gradients", "optimiser", "average", "host", "kept", "gathered"]
    body = [[name, *(f"{count / unit:.2f}" for count in row)] for name, row in rows.items()]
    shown = [0, *(i for i in range(1, len(header)) if any(row[i] != "0.00" for row in body))]
    yield from _align([header[i] for i in shown], [[row[i] for i in shown] for row in body])


def _choose_unit(sizes: Sequence[int]) -> tuple[int, str]:
    return (GIB, "GiB") if max(sizes) >= GIB else (2**20, "MiB")


def _format_fit(fit: Fit, unit: int) -> str:
    digits = 2 if fit.times < 10 else 0
    largest = f"{fit.times:.{digits}f}x" if fit.times else "does not fit"
    return f"{fit.peak / unit:.2f} ({largest})"


def _join_names(names: Sequence[str]) -> str:
    """The first of several names and the last, with "=" between two and "..." between more; what both say stands once."""
    first, last = names[0].split(", "), names[-1].split(", ")
    if len(names) == 1:
        return names[0]
    if len(first) == len(last) and first[1:] == last[1:]:  # "ZeRO 1, offload" and "ZeRO 2, offload"
        first, last = first[:1], [last[0].removeprefix("ZeRO ") if first[0].startswith("ZeRO ") else last[0], *last[1:]]
    elif last[: len(first)] == first:  # "split" and "split, deferred"
        last = last[len(first) :]
    return f"{', '.join(first)} {'=' if len(names) == 2 else '...'} {', '.join(last)}"


def _merge(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Neighbouring rows with the same cells become one, under all of their names."""
    merged: list[tuple[list[str], list[str]]] = []
    for name, *cells in rows:
        if merged and merged[-1][1] == cells:
            merged[-1][0].append(name)
        else:
            merged.append(([name], cells))
    return [[_join_names(names), *cells] for names, cells in merged]


def _align(header: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows in columns; a heading with commas stands in as many lines."""
    heads = [head.replace(", ", ",\n").split("\n") for head in header]
    height = max(map(len, heads))
    stacked = [[*[""] * (height - len(head)), *head] for head in heads]
    rows = [*map(list, zip(*stacked, strict=True)), *_merge(body)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    gap = "  " if sum(widths) + 2 * len(widths) <= WIDTH else " "
    for row in rows:
        cells = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield gap.join(cells).rstrip()
