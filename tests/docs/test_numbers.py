"""Every measured number and picture of README.md and docs/*.md comes from a record.

A number with a unit of a measurement stands under a mark of `benchmarks.tables` or `benchmarks.values`, or in code, or is
one of the constants below: a setting, a size, a limit, a count of the code, a citation. `NAMED` are right on every page;
`CONSTANTS` belong to one sentence of one page, and a sentence that is gone has to leave the list.
"""

import re
from pathlib import Path

import pytest

from benchmarks.figures import DRAWN_BY_HAND, FIGURES, draw_all
from benchmarks.tables import documents
from benchmarks.values import MARK

MADE = (
    re.compile(r"<!-- table:.*?<!-- /table -->", re.DOTALL),
    MARK,
    re.compile(r"```.*?```", re.DOTALL),
    re.compile(r"(?m)^ {4,}(?:python -m|fastmpl|[a-zF]\w*\(?\w*\)? +=).*$"),  # an indented command or formula
    re.compile(r"`[^`\n]*`"),
    re.compile(r"\]\([^)\n]*\)"),
)
UNIT = r"%|x\b(?! ?\d)|[mu]?s\b|[kKMGT]i?B\b|seconds?\b|minutes?\b|hours?\b|times\b|points?\b|images/s"
WORDS = "one|two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|half an?|an? half|and a half"
SHARES = r"(?:half|a third|a quarter|two thirds|three quarters|a tenth) (?:the|of the|of its) (?:time|cost|memory|peak)"
MEASURED = re.compile(
    rf"(?:\b\d[\d,.]*|\b(?:{WORDS}))\s(?:percent|{UNIT})|\b\d+(?:%|x\b|s\b)|\b{SHARES}|\btwice as (?:fast|slow)"
)

NAMED = {
    r"[46][05] %": "the share of wrong labels in an experiment",
    r"95 %": "the level of an interval",
    r"1,000 points": "points of the plane in two moons",
}
CONSTANTS = {  # page -> part of a line, and why the number in it is no measurement
    "algorithm.md": [
        ("0.3 % of the length of the last update", "the step of the difference form, in learners/passes.py"),
        ("stay below 1 GiB", "the limit that tangent_parts.py divides by"),
    ],
    "data.md": [("from 2 % on the terminal shows it", "a threshold of telemetry/progress.py")],
    "many_gpus.md": [
        ("Slurm signals the ranks 120 seconds", "a setting of launch/slurm.sh"),
        ("save within 25 seconds", "a limit"),
        ("(120 s) is for every operation between ranks; the first meeting has 300 s", "defaults"),
        ("within 2 seconds", "a limit that tests/ranks/test_launchers.py holds"),
    ],
    "memory.md": [("in 90 % of the memory", "the room that `plan` leaves")],
    "performance.md": [
        ("more than 256 MiB", "a limit of step/tape.py"),
        ("passes over the activation eight times", "counted in the kernel's code"),
    ],
    "pretrained.md": [("ten times the rate", "a setting")],
    "reduced_mpl.md": [
        ("66 bytes a row, 84.5 MB for 1.28 million", "a product"),
        ("the 16 largest kept (84.5 MB)", "the same product"),
    ],
    "reliability.md": [
        ("1, 2, 4, ... 60 seconds", "a setting"),
        ("tells the others twice a", "a setting of distributed/stop_agreement.py"),
        ("within 30 s", "a limit that a test holds"),
    ],
    "scale.md": [
        ("is 300 GB a second (NVLink of an A100", "of a data sheet, in planner/link.py"),
        ("*l* is 5 us", "a setting of planner/link.py"),
        ("250 GB of memory for lists", "a limit of planner/scale.py"),
        ("reads 2 GB a second", "a limit of planner/scale.py"),
        ("writes 1 GB a second", "a limit of planner/scale.py"),
    ],
    "report.md": [
        ("80 % should be right", "the meaning of calibration"),
        ("under 5 % of what it was", "a threshold of report/feedback_alarms.py"),
        ("more than 1 % of the supervised one", "a threshold of report/feedback_alarms.py"),
    ],
}


def blank(text: str) -> str:
    """The text without what is made from records, without code and without the targets of links."""
    for made in MADE:
        text = made.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    return text


def loose(text: str) -> list[tuple[str, str]]:
    """The numbers outside marks that look measured, each with the line or the two that it stands in."""
    text = blank(text)
    found = []
    for number in MEASURED.finditer(text):
        start, end = text.rfind("\n", 0, number.start()) + 1, text.find("\n", number.end())
        found.append((" ".join(number[0].split()), " ".join(text[start : end if end >= 0 else None].split())))
    return found


def is_constant(number: str, lines: str, page: str) -> bool:
    named = any(re.fullmatch(pattern, number) for pattern in NAMED)
    return named or any(part in lines for part, _ in CONSTANTS.get(page, []))


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.name)
def test_a_measured_number_comes_from_a_record(page: Path) -> None:
    found = [
        f"{number!r} in: {lines}"
        for number, lines in loose(page.read_text())
        if not is_constant(number, lines, page.name)
    ]
    assert not found, "\n".join(["put it under a mark (benchmarks/values.py), or say why it is a constant:", *found])


@pytest.mark.parametrize("page", CONSTANTS)
def test_a_constant_is_in_its_page(page: str) -> None:
    text = " ".join(blank(next(path for path in documents() if path.name == page).read_text()).split())
    gone = [part for part, _ in CONSTANTS[page] if part not in text]
    assert not gone, f"no longer on the page: {gone}"


@pytest.mark.parametrize(
    "sentence",
    [
        "A step takes 1.2 s.",
        "It is 3x faster.",
        "It needs 40 % of the memory.",
        "It gains eight points.",
        "It takes 3.5\ntimes the steps.",
        "It keeps 11.5 GB.",
        "It comes at half the cost.",
        "It reads 500 images/s.",
    ],
)
def test_a_measured_number_is_recognised(sentence: str) -> None:
    assert loose(sentence)
    assert not loose(f"`{sentence}`".replace("\n", " "))


@pytest.mark.parametrize("sentence", ["Pictures of 500 x 375 pixels.", "Two ranks.", "Steps 10 and 20.", "an l40s"])
def test_sizes_and_counts_are_not_taken_for_measurements(sentence: str) -> None:
    assert not loose(sentence)


def test_every_picture_is_drawn_from_a_record() -> None:
    shown = {
        Path(picture).name
        for page in documents()
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
        if "://" not in picture
    }
    drawn = draw_all()
    assert shown - DRAWN_BY_HAND == drawn.keys()
    assert {path.name for path in FIGURES.iterdir()} == drawn.keys() | DRAWN_BY_HAND
