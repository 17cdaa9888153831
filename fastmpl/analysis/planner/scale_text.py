"""Prints what a run needs at its number of ranks and images as lines of text, under the memory plan."""

from collections.abc import Iterator, Sequence
from textwrap import wrap

from fastmpl.analysis.planner.scale import DECODED, ENCODED, LISTED, LISTING, Need, ScalePlan
from fastmpl.analysis.planner.text import WIDTH

INDENT = 13  # columns


def format_scale(found: ScalePlan, uneven: Sequence[str]) -> Iterator[str]:
    """Lines with the batches that ranks cannot share, messages, images, lists, checkpoints, and what breaks first."""
    for name, sentence in _sentences(found, uneven):
        yield from wrap(f"{name:{INDENT}}{sentence}", WIDTH, subsequent_indent=" " * INDENT)


def _sentences(found: ScalePlan, uneven: Sequence[str]) -> Iterator[tuple[str, str]]:
    for sentence in uneven:
        yield "refused", sentence
    if found.messages:
        number, sent = (sum(getattr(each, name) for each in found.messages) for name in ("number", "bytes"))
        link = found.link
        most = "at most " if found.is_small else ""
        ways = f"{link.inside / 1e9:g} GB/s in a machine"
        ways += f", {link.between / 1e9:g} GB/s a GPU between machines" if found.machines > 1 else ""
        yield (
            "messages",
            f"{number:,} a step{' that credits' if found.every > 1 else ''}, {_round(sent / 1e6)} MB: "
            f"{_round(1e3 * found.sending)} ms{' in the mean' if found.every > 1 else ''}, {most}{100 * found.share:.2g} "
            f"% of the step, which takes {found.step:.3g} s with them; {ways}, {1e6 * link.latency:g} us a hop",
        )
    if found.decodes:
        cores, read = found.rate * DECODED, found.rate * ENCODED
        yield (
            "images",
            f"{found.rate:,.0f} a second of a rank: {cores:,.1f} cores, where CPUs decode, read {read / 1e6:,.0f} MB/s",
        )
    if found.images:
        size, seconds = LISTED * found.images, LISTING * found.images
        yield "lists", f"{found.images:,} images: {size / 1e9:,.2g} GB of each rank, {seconds:,.0f} s to list"
    yield "checkpoint", f"{found.checkpoint / 1e9:,.2g} GB of each process that writes one"
    breaking = [need for need in found.needs if need.load >= 1]
    for need in breaking:
        yield "breaks", _describe(need)
    if not breaking and found.needs:
        yield "breaks", f"nothing; nearest to its limit is {_describe(found.needs[0])}"


def _round(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _describe(need: Need) -> str:
    return f"{need.name}, {need.amount}, {100 * need.load:,.0f} % of the limit: {need.remedy}"
