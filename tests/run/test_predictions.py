"""What a finished run keeps of single images: the answers of the network that it leaves, under the names of their files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastmpl.config.keys import DataConfig
from fastmpl.data.build import build
from fastmpl.distributed.ranks import ALONE
from fastmpl.report.confusion_chart import confusion
from fastmpl.report.reading import read_run
from fastmpl.run.classifier import load_classifier
from fastmpl.run.label_sample import SAMPLE
from fastmpl.run.predictions import predict_split
from fastmpl.run.thumbnails import SIDE, make_thumbnails
from fastmpl.telemetry.metrics_file import read_lines
from fastmpl.telemetry.predictions import Record, read_record
from fastmpl.telemetry.training_analysis import DOZEN, read_targets
from tests.ranks.runs import Job
from tests.ranks.spawned import on_ranks
from tests.run.short_runs import short_config, train_quietly


def record_of(folder: Path) -> Record:
    record = read_record(folder / "small")
    assert record is not None
    return record


def test_the_predictions_are_those_of_the_network_in_student_safetensors(tmp_path: Path) -> None:
    results = train_quietly(short_config(tmp_path), report=True)
    record, student = record_of(tmp_path), load_classifier(tmp_path / "small")
    assert record.network == results.headline["description"]
    for split, found in record.splits.items():
        assert found.right.mean() == results.headline[split]
    test = record.splits["test"]
    assert student.normalisation is not None and len(test.truth) == 500
    shown = torch.from_numpy(test.pictures[..., :1]).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values)[:1, None, None] for values in student.normalisation)
    channels = student.image_shape[0]
    logits = student.module(((shown - mean) / std).expand(-1, channels, -1, -1))
    assert logits.argmax(-1).tolist() == test.predicted[test.shown].tolist()  # pictures belong to their rows
    wrong = np.flatnonzero(~test.right)
    assert test.confidence[wrong].argmax() in np.flatnonzero(np.isin(wrong, test.shown))


@pytest.mark.parametrize(
    "changes",
    [
        {"run__evaluate_every": 4, "student__lr": 0.3},
        {"data__validation": 0},
        {"finetune__steps": 4, "finetune__batch": 16, "finetune__lr": 0.01},
        {"method__name": "uda", "feedback__kind": "off", "student__average": 0.0},
    ],
    ids=["selected", "no validation images", "fine-tuned", "uda without an average"],
)
def test_the_matrix_of_the_report_has_the_accuracy_of_the_headline(tmp_path: Path, changes: dict[str, Any]) -> None:
    results, record = train_quietly(short_config(tmp_path, **changes), report=True), record_of(tmp_path)
    counts = confusion(record.splits["test"], np.arange(10))
    assert np.trace(counts) / counts.sum() == results.headline["test"]
    shown = read_run(tmp_path / "small").headline
    assert shown is not None and shown.test == results.headline["test"]
    assert record.network == results.headline["description"]


@pytest.mark.parametrize(
    ("changes", "labeller"),
    [
        ({}, ("teacher", "strong", 0.6)),
        ({"method__name": "uda", "feedback__kind": "off"}, ("student", "weak", 0.6)),
        ({"method__name": "supervised", "feedback__kind": "off"}, None),
        (
            {"method__name": "pseudo_label", "method__threshold": 0.25, "feedback__kind": "off"},
            ("student", "strong", 0.25),
        ),
    ],
    ids=["mpl", "uda", "supervised", "pseudo label"],
)
def test_pseudo_labels_are_those_that_the_method_gives(
    tmp_path: Path, changes: dict[str, Any], labeller: tuple[str, str, float] | None
) -> None:
    config = short_config(tmp_path, **changes)
    train_quietly(config, report=True)
    labels = record_of(tmp_path).labels
    if labeller is None:
        assert labels is None
        return
    assert labels is not None
    assert (labels.labeller, labels.view, labels.threshold) == labeller
    assert len(set(labels.names)) == len(labels.label) == SAMPLE
    assert (labels.truth >= 0).all() and (labels.confidence >= 0.1).all()
    assert not np.array_equal(labels.weak, labels.strong)  # cutout


def test_an_analysed_run_shows_the_images_whose_labels_it_followed(tmp_path: Path) -> None:
    train_quietly(short_config(tmp_path, run__analyse=True), report=True)
    labels = record_of(tmp_path).labels
    followed = next(found for found in read_targets(read_lines(tmp_path / "small")) if found.names)
    assert labels is not None and len(followed.names) == DOZEN
    assert set(followed.names) <= set(labels.names[labels.shown].tolist())
    assert (tmp_path / "small/report.html").read_text().count('<ol class="moments">') == DOZEN


def test_a_run_that_is_asked_for_no_report_keeps_no_predictions(tmp_path: Path) -> None:
    train_quietly(short_config(tmp_path))
    assert read_record(tmp_path / "small") is None


def test_predictions_on_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    without_norm = {"teacher__model": "perceptron", "student__model": "perceptron"}
    ended = on_ranks(2, Job(short_config(tmp_path / "two", **without_norm), report=True), grouped=False)
    assert [one.code for one in ended] == [0, 0], ended
    train_quietly(short_config(tmp_path / "one", **without_norm), report=True)
    one, two = record_of(tmp_path / "one"), record_of(tmp_path / "two")
    for split, found in one.splits.items():
        assert found.names.tolist() == two.splits[split].names.tolist()
        assert np.abs(found.confidence - two.splits[split].confidence).max() < 1e-3
    assert one.labels is not None and two.labels is not None
    assert one.labels.names.tolist() == two.labels.names.tolist()


@pytest.mark.parametrize("decode", ["once", "always"])
def test_an_image_that_has_gone_does_not_shift_the_names_of_the_others(tmp_path: Path, decode: str) -> None:
    pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130 to decode images")
    for part, shade in (("labelled", 0), ("test", 40)):
        for number, kind in enumerate(("cat", "dog")):
            (tmp_path / part / kind).mkdir(parents=True)
            for i in range(6):
                grey = Image.new("RGB", (40, 40), (shade + 120 * number + 2 * i,) * 3)
                grey.save(tmp_path / part / kind / f"{i}.png")
    (tmp_path / "unlabelled").mkdir()
    settings = DataConfig(
        source="folder", root=str(tmp_path), decode=decode, labels=0, validation=0, image_size=32, batch_labelled=4,
        batch_unlabelled=4, shift=0.0,
    )  # fmt: skip
    data = build(settings, seed=0)
    gone = tmp_path / "test/cat/2.png"
    if decode == "always":
        gone.unlink()

    def infer(images: Tensor) -> Tensor:  # two classes by brightness
        bright = images.mean((1, 2, 3))
        return torch.stack([-bright, bright], 1)

    found = predict_split(infer, data, "test", torch.device("cpu"), ALONE)
    assert found is not None
    expected = [f"test/{kind}/{i}.png" for kind in ("cat", "dog") for i in range(6)]
    assert found.names.tolist() == [name for name in expected if decode == "once" or name != "test/cat/2.png"]
    shades = dict(zip(found.names[found.shown], found.pictures.mean((1, 2, 3)), strict=True))
    for name, shade in shades.items():
        kind, number = name.split("/")[1:]
        assert shade == pytest.approx(40 + 120 * (kind == "dog") + 2 * int(number[0]), abs=1.0)
    assert found.right.mean() > 0.5


def test_a_thumbnail_is_small_and_has_three_channels() -> None:
    from fastmpl.data.normalise import Normalisation

    grey = torch.ones(2, 1, 200, 200)
    made = make_thumbnails(grey, Normalisation((100.0,), (50.0,)))
    assert made.shape == (2, SIDE, SIDE, 3) and (made == 150).all()
