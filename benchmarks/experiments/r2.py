"""Does feedback matter with few labels? Every method, and feedback off, on, shuffled and flipped, on identical draws.

    python -m benchmarks.experiments.r2                                   digits, 20 labels
    python -m benchmarks.experiments.r2 --data fashion --record r2_fashion        Fashion-MNIST, 500 labels

Each before and after fine-tuning on the labelled images. The arms of the feedback are those of `fastmpl ablate`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.experiments.common import CONFIGS, options, record, row, run_rows, tell
from benchmarks.records import Row
from fastmpl import ablation
from fastmpl.config import load
from fastmpl.experiment import Arm, run_arms

CPU_SIZED: Mapping[str, Any] = {
    **{
        f"{role}.{key}": value
        for role in ("teacher", "student")
        for key, value in (("model", "perceptron"), ("depth", 3))
    },
    "data.batch_unlabelled": 128,
}
DATA: Mapping[str, tuple[str, int, Mapping[str, Any]]] = {
    "digits": ("digits.toml", 600, {"finetune.batch": 20}),
    "fashion": ("fashion_mnist_500.toml", 2000, {**CPU_SIZED, "finetune.batch": 64}),
}
FINETUNING = {"finetune.steps": 200, "finetune.lr": 0.003}
WITHOUT = {"feedback.kind": "off"}
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "supervised": {**WITHOUT, "method.name": "supervised"},
    "pseudo-label": {
        **WITHOUT,
        "method.name": "pseudo_label",
        "method.targets": "argmax",
        "method.label_view": "weak",
        "method.threshold": 0.9,
    },
    "UDA": {**WITHOUT, "method.name": "uda"},
}
SAMPLED = {"method.targets": "sampled"}


def arms(config: str, common: Mapping[str, Any]) -> list[Arm]:
    """The other methods, the arms of the ablation of soft labels, and the two kinds of sampled ones."""
    path = CONFIGS / config
    found = [Arm(name, path, {**common, **changes}) for name, changes in OTHERS.items()]
    for targets, changes in (("soft", {}), ("sampled", SAMPLED)):
        kind = {} if targets == "soft" else {"feedback.kind": "scalar"}
        for arm in ablation.arms(load(path, {**common, **changes, **kind}), path):
            if targets == "sampled" and arm.name not in ("per_example", "scalar"):
                continue
            found.append(arm._replace(name=f"MPL, {arm.name}", changes={**common, **changes, **arm.changes}))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("r2", __doc__.splitlines()[0], steps=0)
    parser.add_argument("--data", choices=list(DATA), default="digits")
    asked = parser.parse_args(arguments)
    config, steps, changes = DATA[asked.data]
    asked.steps = asked.steps or steps
    common = {"run.steps": asked.steps, "run.checkpoint_every": asked.steps, **FINETUNING, **changes}
    chosen = arms(config, common)
    named = [arm._replace(name=arm.name.replace(", ", "-").lower()) for arm in chosen]
    outcomes = run_arms(named, asked.seeds, asked.output / asked.data, tell, asked.jobs)
    rows: list[Row] = []
    for arm, run in zip(chosen, named, strict=True):
        of_seeds = outcomes[run.name]
        rows += run_rows("before fine-tuning", arm.name, of_seeds)
        rows += [row("after fine-tuning", arm.name, seed, o["finetuned"]["test"]) for seed, o in enumerate(of_seeds)]
    rows.sort(key=lambda each: each["case"] != "before fine-tuning")
    record(asked, rows, baseline="MPL, off", data=asked.data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
