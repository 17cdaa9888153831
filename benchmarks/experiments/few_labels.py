"""Does feedback matter with few labels? Every method, and feedback off, on, shuffled and flipped, on identical draws.

    python -m benchmarks.experiments.few_labels                                   digits, 20 labels
    python -m benchmarks.experiments.few_labels --data fashion --record few_labels_fashion        Fashion-MNIST, 500 labels

Each before and after fine-tuning on the labelled images. The feedback of whole distributions is `fastmpl ablate`, which
prints its tables on the way. Fashion-MNIST's networks are perceptrons without RandAugment, of a size for 45 runs on a CPU.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.experiments.common import CONFIGS, options, record, row, run_rows, tell
from benchmarks.records import Row
from fastmpl.config import load
from fastmpl.study import ablation
from fastmpl.study.arms import Arm, run_arms

CPU_SIZED: Mapping[str, Any] = {
    **{
        f"{role}.{key}": value
        for role in ("teacher", "student")
        for key, value in (("model", "perceptron"), ("depth", 3))
    },
    "data.channels": 1,
    "data.rand_augment": (0, 0),
}
DATA: Mapping[str, tuple[str, int, Mapping[str, Any]]] = {
    "digits": ("digits.toml", 600, {"finetune.batch": 20}),
    "fashion": ("fashion_mnist_500.toml", 1000, {**CPU_SIZED, "finetune.batch": 64}),
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
SAMPLED: Mapping[str, Mapping[str, Any]] = {
    f"MPL, {kind}": {"method.targets": "sampled", "feedback.kind": kind} for kind in ("per_example", "scalar")
}


def slug(name: str) -> str:
    return name.replace(", ", "-").lower()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("few_labels", __doc__.splitlines()[0], steps=0)
    parser.add_argument("--data", choices=list(DATA), default="digits")
    asked = parser.parse_args(arguments)
    config, steps, changes = DATA[asked.data]
    asked.steps = asked.steps or steps
    common = {"run.steps": asked.steps, "run.checkpoint_every": asked.steps, **FINETUNING, **changes}
    path, folder = CONFIGS / config, asked.output / asked.data
    torch.set_num_threads(1)
    ablated = load(path, common)
    ablation.run(ablated, folder, asked.seeds, asked.jobs)
    arms = {f"MPL, {arm.name}": arm for arm in ablation.build_arms(ablated, folder / "config.toml")}
    of_others = {**OTHERS, **SAMPLED}
    arms |= {name: Arm(slug(name), path, {**common, **changes}) for name, changes in of_others.items()}
    outcomes = run_arms(list(arms.values()), asked.seeds, folder, tell, asked.jobs)
    rows: list[Row] = []
    for name in (*OTHERS, *(name for name in arms if name not in OTHERS)):
        of_seeds = outcomes[arms[name].name]
        rows += run_rows("before fine-tuning", name, of_seeds)
        rows += [row("after fine-tuning", name, seed, o["finetuned"]["test"]) for seed, o in enumerate(of_seeds)]
    rows.sort(key=lambda each: each["case"] != "before fine-tuning")
    record(asked, rows, baseline="MPL, off", data=asked.data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
