"""What is shown is what ships: the network of the headline is in student.safetensors, and the others can be had by name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastmpl import cli
from fastmpl.cli.verbs_on_runs import NetworkOption
from fastmpl.commands.distill import TeacherSource, distill
from fastmpl.commands.evaluate import evaluate
from fastmpl.commands.export import Wanted, export
from fastmpl.config import Config, ConfigError
from fastmpl.data.memory.evaluation_set import DecodedEvaluationSet
from fastmpl.report.reading import read_run
from fastmpl.run import checkpoint
from fastmpl.run.classifier import load_classifier
from fastmpl.run.headline import NetworkName
from fastmpl.run.scores import Score, score
from fastmpl.run.selection import Selection
from tests.run.short_runs import short_config, stop_after, train_quietly

SMALL: dict[str, Any] = {"student__width": 16, "teacher__width": 16, "run__evaluate_every": 4}
METHODS: dict[str, dict[str, Any]] = {
    "supervised": {"method__name": "supervised", "feedback__kind": "off"},
    "uda": {"method__name": "uda", "feedback__kind": "off"},
    "pseudo_label": {"method__name": "pseudo_label", "feedback__kind": "off"},
    "mpl": {},
    "mpl, fine-tuned": {"finetune__steps": 8, "finetune__batch": 20, "finetune__lr": 0.01},
    "mpl, bf16": {"system__precision": "bf16", "student__average": 0.0},
    "distillation": {"method__name": "distillation", "feedback__kind": "off"},
    "reduced_mpl": {"method__name": "reduced_mpl"},
}


def config_of(method: str, folder: Path, teacher: Path) -> Config:
    changes = SMALL | METHODS[method]
    if method == "distillation":
        changes |= {"teacher__model": str(teacher)}
    if method == "reduced_mpl":
        changes |= {"data__store": str(teacher.parent / "store")}
    return short_config(folder, **changes)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that others learn from, beside the distributions that it gives."""
    folder = tmp_path_factory.mktemp("teacher")
    config = short_config(folder, **SMALL, **METHODS["supervised"])
    train_quietly(config)
    distill(config, TeacherSource(str(folder / "small"), None, 1), output=folder / "store", top_k=0, tell=str)
    return folder / "small"


def recorded(results: dict[str, Any], network: NetworkName) -> dict[str, float] | None:
    """What results.json says of a network; None where the run has none."""
    where = {"last": "student", "average": "average", "teacher": "teacher"}
    found = results[network] if network in ("selected", "finetuned") else results["last"].get(where[network])
    return found and {split: found[split] for split in ("validation", "test")}


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_finds_what_the_run_recorded_of_every_network_to_the_last_digit(
    method: str, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_quietly(config_of(method, tmp_path, teacher))
    run = tmp_path / "small"
    results = json.loads((run / "results.json").read_text())
    names: tuple[NetworkName, ...] = get_args(NetworkName)
    there = []
    for network in names:
        if (expected := recorded(results, network)) is None:
            with pytest.raises(ConfigError, match=f"--network {network}"):
                load_classifier(run, network)
            continue
        found = evaluate(run, network=network)
        assert {one.name: one.accuracy for one in found.sets} == expected, network
        there.append(network)
    assert {"selected", "last"} <= set(there)
    assert ("teacher" in there) == method.startswith("mpl")
    assert ("finetuned" in there) == ("fine-tuned" in method)
    headline = read_run(run).headline
    assert headline is not None and headline.name == evaluate(run).description
    shown = {one.name: one.accuracy for one in evaluate(run).sets}
    assert shown == {"validation": headline.validation, "test": headline.test} == recorded(results, "selected")
    assert cli.main(["evaluate", str(run)]) == 0
    assert f"network: {headline.name}" in capsys.readouterr().out


def test_the_loss_is_that_of_the_log_too(tmp_path: Path) -> None:
    train_quietly(short_config(tmp_path, **SMALL))
    lines = [json.loads(line) for line in (tmp_path / "small/metrics.jsonl").read_text().splitlines()]
    last = {(e["network"], e["split"]): e["loss"] for e in lines if e["kind"] == "evaluation" and e["step"] == 20}
    found = {one.name: one.loss for one in evaluate(tmp_path / "small", network="teacher").sets}
    assert found == {split: last["teacher", split] for split in ("validation", "test")}


def test_the_command_line_offers_the_networks_that_there_are() -> None:
    assert get_args(NetworkOption) == get_args(NetworkName)


def test_without_validation_images_the_last_average_ships_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = train_quietly(short_config(tmp_path, data__validation=0, **SMALL))
    assert results.selected is None
    assert results.headline["network"] == "average"
    assert "without validation images none is selected" in evaluate(tmp_path / "small").description
    assert "without validation" in json.loads((tmp_path / "small/STATUS.json").read_text())["message"]
    found = {one.name: one.accuracy for one in evaluate(tmp_path / "small").sets}
    assert found == results.last["average"] == {"test": results.headline["test"]}
    assert cli.main(["evaluate", str(tmp_path / "small"), "--network", "selected"]) == 2
    assert "none was selected on validation images" in capsys.readouterr().err


def test_a_run_that_was_stopped_ships_the_network_of_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the best student is older than the checkpoint that is continued."""
    whole, parts = (short_config(tmp_path / name, **SMALL, student__lr=1.0) for name in ("whole", "parts"))
    first = train_quietly(whole)
    assert first.selected is not None
    stop_after(19, parts, monkeypatch)
    assert first.selected["step"] < 19, "the test needs a best student before the interruption"
    assert train_quietly(parts).selected == first.selected
    one, two = (load_file(tmp_path / name / "small/student.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    kept = checkpoint.read(tmp_path / "whole/small/checkpoints/step-20").tensors
    assert all(torch.equal(one[name], kept[f"selected/{name}"]) for name in one)


def test_an_exported_file_is_of_the_network_that_was_asked_for(tmp_path: Path) -> None:
    train_quietly(short_config(tmp_path, **SMALL))
    for network in ("last", "average"):
        found = export(tmp_path / "small", Wanted("safetensors", tmp_path / network, network=network))
        expected = load_classifier(tmp_path / "small", network).module.state_dict()
        written = load_file(tmp_path / network)
        assert all(torch.equal(written[name], value) for name, value in expected.items())
        assert load_classifier(tmp_path / "small", network).description in found.remarks[0]


def test_patience_ends_a_run_whose_student_gets_no_better_and_its_resumption(tmp_path: Path) -> None:
    still: dict[str, Any] = SMALL | {"student__lr": 0.0, "student__average": 0.0, "student__norm": "group"}
    still |= {"run__patience": 2}
    results = train_quietly(short_config(tmp_path, **still))
    assert results.steps == 12  # the first of evaluations at 4, 8 and 12 is the best
    assert results.selected is not None and results.selected["step"] == 4
    status = json.loads((tmp_path / "small/STATUS.json").read_text())
    assert (status["state"], status["step"]) == ("done", 12)
    assert "Stopped early, at step 12 of 20" in status["notes"][0]
    assert train_quietly(short_config(tmp_path, **still)).steps == 12
    assert train_quietly(short_config(tmp_path, **still | {"run__patience": 0})).steps == 20


# -- the measures


def scores(**values: float) -> dict[Any, Score]:
    return {"validation": Score(0.0, 0.0, 10, 0.0, 0.0)._replace(**values)}


def weights(value: float) -> Iterator[tuple[str, Tensor]]:
    yield "w", torch.tensor([value])


@pytest.mark.parametrize("select_by", ["accuracy", "macro_recall", "macro_f1", "loss"])
def test_the_best_by_the_measure_is_kept(select_by: Any) -> None:
    kept = Selection(select_by)
    values = [0.3, float("nan"), 0.5, 0.5, 0.2]
    best = min if select_by == "loss" else max
    for step, value in enumerate(values):
        kept.consider(step, "student", scores(**{select_by: value}), lambda value=value: weights(value))
    wanted = values.index(best(values[0], *values[2:]))
    assert kept.best is not None and (kept.best["step"], kept.best["score"]) == (wanted, values[wanted])
    assert kept.weights["w"] == torch.tensor(values[wanted])


def test_of_two_with_the_same_score_the_one_with_the_lower_loss_is_kept() -> None:
    kept = Selection("accuracy")
    for step, (accuracy, loss) in enumerate([(0.5, 0.9), (0.5, 0.7), (0.5, 0.8), (0.4, 0.1), (0.5, float("nan"))]):
        kept.consider(step, "student", scores(accuracy=accuracy, loss=loss), lambda step=step: weights(step))
    assert kept.best is not None and (kept.best["step"], kept.best["loss"]) == (1, 0.7)
    assert kept.weights["w"] == torch.tensor([1])
    old = Selection("accuracy")  # a checkpoint of a version that kept no loss
    old.restore({"best": {"step": 3, "network": "student", "validation": 0.5}}, {"selected/w": torch.ones(1)})
    assert not old.consider(4, "student", scores(accuracy=0.5, loss=0.1), lambda: weights(4))
    assert old.consider(5, "student", scores(accuracy=0.6, loss=0.9), lambda: weights(5))


def test_a_copy_is_kept_not_the_memory_that_training_writes() -> None:
    kept, trained = Selection("accuracy"), torch.ones(2)
    kept.consider(1, "student", scores(accuracy=0.5), lambda: iter([("w", trained)]))
    trained.zero_()
    assert torch.equal(kept.weights["w"], torch.ones(2))


def test_macro_means_count_every_class_alike() -> None:
    """Nine of class 0, all right; three of class 1, one right; none of class 2, which is answered once."""
    labels = torch.tensor([0] * 9 + [1] * 3)
    answers = torch.tensor([0] * 9 + [1, 0, 2])
    held = DecodedEvaluationSet(torch.eye(3)[answers], labels, 1, None)
    found = score(lambda images: 9 * images, held, torch.device("cpu"))
    assert found.accuracy == pytest.approx(10 / 12)
    assert found.macro_recall == pytest.approx(np.mean([1, 1 / 3]))
    assert found.macro_f1 == pytest.approx(np.mean([2 * 9 / (9 + 10), 2 * 1 / (3 + 1)]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run__select_by": "loss", "data__validation": 0}, "needs data.validation above 0"),
        ({"run__patience": 3, "data__validation": 0}, "needs data.validation above 0"),
        ({"run__patience": 3, "finetune__steps": 5}, "fine-tuning starts after run.steps"),
    ],
)
def test_keys_that_cannot_work_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        short_config(tmp_path, **changes)
