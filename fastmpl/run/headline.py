"""The network that a run is judged by: the one in student.safetensors, of the report's headline and of `evaluate`.

It is the network selected on the validation images. Without validation images nothing can be selected, and it is the
fine-tuned student, or else the average of the last step, or the student itself where it keeps no average.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from fastmpl.config import Config
from fastmpl.run.scores import Network, Split

NetworkName = Literal["selected", "average", "last", "finetuned", "teacher"]

MEASURES: Final = {"accuracy": "accuracy", "macro_recall": "macro recall", "macro_f1": "macro F1", "loss": "loss"}
WORDS: Final = {
    "average": "averaged student",
    "last": "student",
    "finetuned": "fine-tuned student",
    "teacher": "teacher",
}


def default_network(config: Config, *, selected: bool) -> NetworkName:
    """The network that a run of `config` leaves. selected: whether one was selected on validation images."""
    if selected:
        return "selected"
    if config.finetune.steps:
        return "finetuned"
    return "average" if config.student.average else "last"


def kind_of_selected(best: Mapping[str, Any], config: Config) -> NetworkName:
    """Which of a run's networks was selected; `best` is what a checkpoint and results.json hold of it."""
    if best["step"] > config.run.steps:
        return "finetuned"
    return "average" if best["network"] == "average" else "last"


def describe_network(network: NetworkName, step: int, best: Mapping[str, Any] | None, config: Config) -> str:
    """The network in words, with its step. step: of the run or its checkpoint. best: of the selected network."""
    if network == "selected":
        assert best is not None
        words = WORDS[kind_of_selected(best, config)]
        measure = MEASURES[config.run.select_by]
        return f"{words} of step {best['step']:,}, selected by {measure} on the validation images"
    taken = step if network == "finetuned" else min(step, config.run.steps)
    return f"{WORDS[network]} of step {taken:,}"


def make_headline(
    config: Config,
    step: int,
    best: Mapping[str, Any] | None,
    last: Mapping[Network, Mapping[Split, float]],
    finetuned: Mapping[Split, float] | None,
) -> dict[str, Any]:
    """The network that a finished run leaves: its name, step and description, and its accuracies by split."""
    network = default_network(config, selected=best is not None)
    description = describe_network(network, step, best, config)
    splits: tuple[Split, ...] = ("validation", "test")
    if best is not None:
        return {
            "network": network,
            "step": best["step"],
            "description": description,
            **{split: best[split] for split in splits if split in best},
        }
    found = finetuned if network == "finetuned" else last["average" if network == "average" else "student"]
    description += "; without validation images none is selected"
    accuracies = {str(split): accuracy for split, accuracy in (found or {}).items()}
    return {"network": network, "step": step, "description": description} | accuracies
