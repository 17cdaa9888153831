"""A plan as lines of a terminal."""

from collections.abc import Iterator, Sequence

from fastmpl.analysis.planner.plan import Choice, Plan

GIB = 2**30
NOTE = (
    "Not counted: a process's own memory on a GPU (0.5 to 1 GiB), workspaces of cuDNN, fragmentation, messages on their "
    "way, images being decoded."
)


def lines(plan: Plan) -> Iterator[str]:
    """The networks, what each sharding holds, what each schedule costs, and what fits."""
    for role, size in plan.networks.items():
        yield f"{role:9} {size.elements:,} parameters"
    counts = ", ".join(f"{count:,} {name.removeprefix('batch_')}" for name, count in plan.batches.items())
    yield f"a rank    of {plan.ranks}: {counts} images a step"
    yield ""
    yield from _held(plan)
    yield ""
    yield from _table(
        ["a rank's step", "activations, GiB", "beside them, GiB", "TFLOP"],
        [
            [name, f"{cost.activations / GIB:.2f}", f"{cost.overlap / GIB:.2f}", f"{cost.flops / 1e12:,.3g}"]
            for name, cost in plan.costs.items()
        ],
    )
    yield ""
    yield f"Peak in GiB, and the largest batch in {plan.memory / GIB:.0f} GiB, in multiples of the configured one:"
    by_sharding = {name: [c for c in plan.choices if c.sharding == name] for name in plan.states}
    yield from _table(["", *plan.costs], [[name, *map(_fits, row)] for name, row in by_sharding.items()])
    yield ""
    yield NOTE


def _held(plan: Plan) -> Iterator[str]:
    """Both networks' state, and what the credit phase keeps and gathers, in a unit that suits them."""
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
    yield from _table(header, [[name, *(f"{count / unit:.2f}" for count in row)] for name, row in rows.items()])


def _fits(choice: Choice) -> str:
    digits = 2 if choice.times < 10 else 0
    largest = f"{choice.times:.{digits}f}x" if choice.times else "does not fit"
    return f"{choice.peak / GIB:.2f} ({largest})"


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in (header, *body)) for i in range(len(header))]
    for row in (header, *body):
        cells = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
