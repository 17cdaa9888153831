"""What the feedback did over a run in numbers, and a warning where it cannot have helped.

Feedback is the decrease of the student's loss on true labels by one update. All numbers are of the lines of
`metrics.jsonl`, each of which is a mean over the steps of one interval.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from fastmpl.report.reading import RunRecord

WRONG_WAY: Final = 0.5  # share of intervals with a negative feedback from which on its sign is a warning
LONG_RUN: Final = 5  # intervals in a row with a negative feedback
FADED: Final = 0.05  # share of its first size below which feedback has ended
SMALL: Final = 0.01  # gradient over the supervised one, below which it is nothing,
LARGE: Final = 10.0  # and above which it drowns the true labels
FEW: Final = 5  # intervals: fewer tell nothing


class Feedback(NamedTuple):
    """Facts with their names, as a table shows them, and warnings as sentences."""

    facts: Sequence[tuple[str, str]]
    alarms: Sequence[str]


class WrongWay(NamedTuple):
    """The longest run of intervals in which the student's updates raised its loss on true labels."""

    intervals: int
    first_step: float
    last_step: float


def longest_wrong_way(steps: Sequence[float], feedback: Sequence[float]) -> WrongWay:
    """The longest run of consecutive negative values; of equally long ones the first."""
    best, start = WrongWay(0, math.nan, math.nan), 0
    for place, value in enumerate([*feedback, math.inf]):
        if value < 0:
            continue
        if place - start > best.intervals:
            best = WrongWay(place - start, steps[start], steps[place - 1])
        start = place + 1
    return best


def _deviation(values: Sequence[float]) -> float:
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / len(values))


def _alarms(steps: Sequence[float], feedback: Sequence[float], sizes: Sequence[float]) -> list[str]:
    found = []
    negative = sum(value < 0 for value in feedback) / len(feedback)
    longest = longest_wrong_way(steps, feedback)
    if negative > WRONG_WAY:
        found.append(
            f"The student's updates raised its loss on true labels in {100 * negative:.0f} % of the intervals: the "
            "teacher's labels lead the wrong way more often than not. A smaller student.lr, or more labels, may help."
        )
    if longest.intervals >= LONG_RUN:
        found.append(
            f"From step {longest.first_step:,.0f} to {longest.last_step:,.0f} the feedback was below zero in "
            f"{longest.intervals} intervals in a row."
        )
    quarter = max(len(sizes) // 4, 1)
    early, late = (math.fsum(part) / len(part) for part in (sizes[:quarter], sizes[-quarter:]))
    if early > 0 and late < FADED * early:
        found.append(
            f"The size of the feedback fell to {100 * late / early:.1g} % of what it was at first: late in the run the "
            "teacher learned next to nothing from the student."
        )
    return found


def _ratio_alarms(ratios: Sequence[float]) -> list[str]:
    """Warnings on the size of the feedback's gradient beside the supervised one."""
    if max(ratios) < SMALL:
        return [
            f"The feedback's gradient was never more than {100 * max(ratios):.1g} % of the supervised one, at the "
            "teacher's logits: it moved the teacher next to nothing. A larger feedback.weight or student.lr makes it count."
        ]
    large = sum(ratio > LARGE for ratio in ratios) / len(ratios)
    if large > 0.5:
        return [
            f"The feedback's gradient was more than {LARGE:.0f} times the supervised one in {100 * large:.0f} % of the "
            "intervals: the true labels hardly count. A smaller feedback.weight keeps them."
        ]
    return []


def describe_feedback(run: RunRecord) -> Feedback | None:
    """The feedback of a run; None for a run that does not measure any."""
    kind = run.config.feedback.kind if run.config is not None else ""
    method = run.config.method.name if run.config is not None else ""
    rows = [
        (step, value, size)
        for step, value, size in zip(run.train["step"], run.train["feedback"], run.train["feedback_size"], strict=True)
        if all(map(math.isfinite, (step, value, size)))
    ]
    if method not in ("mpl", "reduced_mpl") or kind == "off" or not rows:
        return None
    steps, feedback, sizes = zip(*rows, strict=True)
    if not any(sizes):
        alarm = f'feedback.kind = "{kind}", and the feedback was zero throughout: it taught the teacher nothing.'
        return Feedback([], [alarm])
    above = sum(value > 0 for value in feedback) / len(feedback)
    longest = longest_wrong_way(steps, feedback)
    facts = [
        ("mean", f"{math.fsum(feedback) / len(feedback):+.3g}"),
        ("deviation between intervals", f"{_deviation(feedback):.3g}"),
        (
            "above zero",
            f"{100 * above:.0f} % of {len(feedback):,} intervals",
        ),
        ("longest run below zero", f"{longest.intervals} intervals" if longest.intervals else "none"),
        ("size (root mean square of the credit)", f"{math.fsum(sizes) / len(sizes):.3g}"),
    ]
    ratios = [ratio for ratio in run.train["feedback_ratio"] if math.isfinite(ratio) and ratio > 0]
    if ratios:
        middle = sorted(ratios)[len(ratios) // 2]
        facts.append(("gradient beside the supervised one, median", f"{middle:.2g} times"))
        facts.append(("gradient beside the supervised one, largest", f"{max(ratios):.2g} times"))
    alarms = _alarms(steps, feedback, sizes) if len(rows) >= FEW else []
    return Feedback(facts, alarms + (_ratio_alarms(ratios) if len(ratios) >= FEW else []))
