"""What a finished run writes: its results, the student that ships, and what the report draws pictures from."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastmpl.errors import StorageError
from fastmpl.learners.protocol import RunLearner
from fastmpl.run.classifier import load_classifier
from fastmpl.run.closing import Results
from fastmpl.run.folder import replace_file
from fastmpl.run.headline import make_headline
from fastmpl.run.predictions import Shipped, write_predictions
from fastmpl.run.student_file import FileFacts, save_network, save_student

if TYPE_CHECKING:
    from fastmpl.run.training import Training


def write_results(run: "Training") -> Results:
    """Writes the weights and the results of the finished run."""
    monitor, networks = run.monitor, run.networks.to_evaluate()
    last = monitor.accuracies(networks)
    student, finetuned = run.networks.final_student(), None
    if run.config.finetune.steps:
        networks = {"student": student}
        finetuned = monitor.accuracies(networks)["student"]
    if monitor.selection.best is None:  # no validation images; or a checkpoint that kept no best student
        monitor.select(run.step, networks)
    best = monitor.selection.best
    headline = make_headline(run.config, run.step, best, last, finetuned)
    results = Results(run.step, last, best, finetuned, monitor.seconds, headline)
    if run.ranks.rank == 0:
        replace_file(run.folder / "results.json", json.dumps(results._asdict(), indent=1) + "\n")
    _save_weights(run, student, headline)
    return results


def _save_weights(run: "Training", student: RunLearner, headline: Mapping[str, Any]) -> None:
    """Writes student.safetensors: the selected network, or that of the last step."""
    data, selected = run.data, run.monitor.selection
    facts = FileFacts(
        data.classes, data.image_shape, data.normalisation, headline["network"], headline["description"], run.framing
    )
    if selected.best is None:
        save_student(run.folder, student, facts)
    elif run.ranks.rank == 0:
        save_network(run.folder, selected.weights, facts)


def store_predictions(run: "Training", headline: Mapping[str, Any]) -> None:
    """Writes what the network of student.safetensors says of single images, from which a report draws its pictures."""
    run.ranks.all_gather_object(None)  # the first rank has written the file
    student = load_classifier(run.folder)
    student.module.to(run.device)
    shipped = Shipped(student.infer, student.description, headline["step"])
    try:
        write_predictions(run.folder, shipped, run.config, run.networks.trainee, run.data, run.device, run.ranks)
    except StorageError as error:
        run.monitor.note(f"{error} The report has no pictures.")
