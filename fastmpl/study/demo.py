"""The job of `make train`: two small tables on real data, in a few minutes on two cores.

*Few labels*: digits with 20 labels, supervised against UDA against Meta Pseudo Labels with its feedback off and exact.
*Noisy labels*: 600 labels of which 45 % are wrong, and 50 trusted ones; trained on the noisy labels, then fine-tuned on
the trusted, and gold loss correction, against Meta Pseudo Labels whose feedback comes from the trusted images, off and
exact. Three seeds; each column the same split, noise, images and initial weights. Nothing is tuned to make a row win.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fastmpl.config.examples import find_example
from fastmpl.paired_statistics import mean, paired_interval, standard_error
from fastmpl.study.arms import Arm, Outcome, run_arms

SEEDS = 3
FEW, NOISY = find_example("digits"), find_example("digits_noisy")
SUPERVISED = {"method.name": "supervised", "feedback.kind": "off"}

FEW_ARMS = (
    Arm("supervised", FEW, SUPERVISED),
    Arm("uda", FEW, {"method.name": "uda", "feedback.kind": "off"}),
    Arm("mpl-off", FEW, {"feedback.kind": "off"}),
    Arm("mpl-exact", FEW),
)
NOISY_ARMS = (
    Arm("noisy", NOISY, SUPERVISED),
    Arm(
        "noisy-tuned",
        NOISY,
        {**SUPERVISED, "finetune.steps": 200, "finetune.images": "trusted", "finetune.lr": 0.01, "finetune.batch": 50},
    ),
    Arm("noisy-mpl-off", NOISY, {"feedback.kind": "off"}),
    Arm("noisy-mpl-exact", NOISY),
)


def gold_arm(folder: Path) -> Arm:
    """It reads the finished runs of the arm `noisy` in `folder`."""
    changes = {"method.name": "gold_correction", "feedback.kind": "off", "teacher.model": f"{folder}/noisy-{{seed}}"}
    return Arm("noisy-gold", NOISY, changes)


class DemoRow(NamedTuple):
    """A row of a table: test accuracies of one arm, a share per seed."""

    name: str
    accuracies: list[float]


def few_labels(outcomes: Mapping[str, Sequence[Outcome]]) -> list[DemoRow]:
    """The rows of the first table."""
    names = {
        "supervised": "supervised",
        "uda": "UDA",
        "mpl-off": "MPL, feedback off",
        "mpl-exact": "MPL, feedback exact",
    }
    return [DemoRow(name, [_average(o) for o in outcomes[arm]]) for arm, name in names.items()]


def noisy_labels(outcomes: Mapping[str, Sequence[Outcome]]) -> list[DemoRow]:
    """The rows of the second table."""
    return [
        DemoRow("supervised on the noisy labels", [_average(o) for o in outcomes["noisy"]]),
        DemoRow("the same, then fine-tuned on the trusted", [o["finetuned"]["test"] for o in outcomes["noisy-tuned"]]),
        DemoRow("gold loss correction", [_average(o) for o in outcomes["noisy-gold"]]),
        DemoRow("MPL, feedback off", [_average(o) for o in outcomes["noisy-mpl-off"]]),
        DemoRow("MPL, feedback exact from the trusted", [_average(o) for o in outcomes["noisy-mpl-exact"]]),
    ]


def _average(outcome: Outcome) -> float:
    """Test accuracy of the student's average at the last step: nothing is selected on test images."""
    return float(outcome["last"]["average"]["test"])


def demo(folder: Path, tell: Callable[[str], None]) -> dict[str, list[DemoRow]]:
    """Trains both tables' arms, or takes the finished ones from `folder`; the rows by table."""
    outcomes = run_arms((*FEW_ARMS, *NOISY_ARMS), SEEDS, folder, tell)
    outcomes |= run_arms([gold_arm(folder)], SEEDS, folder, tell)
    return {"Few labels": few_labels(outcomes), "Noisy labels": noisy_labels(outcomes)}


CAPTIONS = {
    "Few labels": "Digits, 20 labels. Test accuracy of the student's average at the last step.",
    "Noisy labels": "Digits, 600 labels of which 45 % name the next class, and 50 trusted ones. Test accuracy as above.",
}


def difference(rows: Sequence[DemoRow]) -> str:
    """Exact feedback against none, in points, with its paired 95 % interval."""
    exact, off = (next(row for row in rows if word in row.name) for word in ("exact", "off"))
    gap = paired_interval([100 * x for x in exact.accuracies], [100 * x for x in off.accuracies])
    return f"exact - off: {gap.mean:+.1f} points, paired 95 % interval [{gap.low:+.1f}, {gap.high:+.1f}]"


def format_table(title: str, rows: Sequence[DemoRow]) -> str:
    """A table for a terminal of 80 columns."""
    width = max(len(row.name) for row in rows)
    lines = [f"{title}: {CAPTIONS[title]}", "", f"{'':{width}}    mean ± s.e.   seeds"]
    for row in rows:
        percent = [100 * x for x in row.accuracies]
        seeds = "  ".join(f"{x:4.1f}" for x in percent)
        lines.append(f"{row.name:{width}}    {mean(percent):4.1f} ± {standard_error(percent):3.1f}    {seeds}")
    return "\n".join([*lines, "", difference(rows)])


def run(folder: Path) -> Path:
    """Trains what is not trained yet, prints both tables and writes the report; gives its path."""
    from fastmpl import report  # matplotlib takes a second to import

    tables = demo(folder, lambda sentence: print(sentence, flush=True))
    for title, rows in tables.items():
        print("\n" + format_table(title, rows))
    compared = [
        report.Comparison(
            title,
            CAPTIONS[title],
            [report.ArmResult(row.name, row.accuracies) for row in rows],
            difference(rows),
            against=next(row.name for row in rows if "off" in row.name),
        )
        for title, rows in tables.items()
    ]
    return report.write_comparison(folder / "report.html", "fastmpl: what feedback does on digits", compared)
