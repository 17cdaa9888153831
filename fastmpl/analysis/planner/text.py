"""Prints a memory plan as lines of text."""

from collections.abc import Iterator, Sequence

from fastmpl.analysis.planner.plan import Fit, MemoryPlan

GIB = 2**30
NOTE = (
    "Not counted: a process's own memory on a GPU (0.5 to 1 GiB), workspaces of cuDNN, fragmentation, messages in "
    "flight, images being decoded."
)


def format_plan(plan: MemoryPlan) -> Iterator[str]:
    """Lines with the networks, the bytes of each sharding, the cost of each schedule, and what fits."""
    for role, size in plan.networks.items():
        yield f"{role:9} {size.elements:,} parameters"
    counts = ", ".join(f"{count:,} {name.removeprefix('batch_')}" for name, count in plan.batches.items())
    yield f"a rank    of {plan.ranks}: {counts} images a step"
    yield from _describe_tangent(plan)
    yield ""
    yield from _tabulate_state(plan)
    yield ""
    yield from _align(
        ["a rank's step", "activations, GiB", "beside them, GiB", "TFLOP"],
        [
            [name, f"{cost.activations / GIB:.2f}", f"{cost.overlap / GIB:.2f}", f"{cost.flops / 1e12:,.3g}"]
            for name, cost in plan.costs.items()
        ],
    )
    yield ""
    yield f"Peak in GiB, and the largest batch in {plan.memory / GIB:.0f} GiB, in multiples of the configured one:"
    by_sharding = {name: [c for c in plan.fits if c.sharding == name] for name in plan.states}
    yield from _align(["", *plan.costs], [[name, *map(_format_fit, row)] for name, row in by_sharding.items()])
    yield ""
    yield NOTE


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
    unit, word = (GIB, "GiB") if max(map(max, rows.values())) >= GIB else (2**20, "MiB")
    header = [f"{word} of a rank", "parameters", "gradients", "optimiser", "average", "on the host", "kept", "gathered"]
    yield from _align(header, [[name, *(f"{count / unit:.2f}" for count in row)] for name, row in rows.items()])


def _format_fit(fit: Fit) -> str:
    digits = 2 if fit.times < 10 else 0
    largest = f"{fit.times:.{digits}f}x" if fit.times else "does not fit"
    return f"{fit.peak / GIB:.2f} ({largest})"


def _align(header: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in (header, *body)) for i in range(len(header))]
    for row in (header, *body):
        cells = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
