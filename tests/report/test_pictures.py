"""What a report says of single images is what `predictions.npz` holds."""

import base64
import csv
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmpl.config import Config, save
from fastmpl.report import write_report
from fastmpl.report.calibration_chart import sort_into_bins
from fastmpl.report.cards import data_uri, doubtful_cards, error_cards, label_cards
from fastmpl.report.confusion_chart import classes_to_draw, confusion, worst_pairs
from fastmpl.report.errors_file import format_errors
from fastmpl.report.feedback_alarms import describe_feedback, longest_wrong_way
from fastmpl.report.label_chart import labelled_classes, never_given
from fastmpl.report.reading import read_run
from fastmpl.telemetry.metrics import Log
from fastmpl.telemetry.predictions import FILE, Predictions, Record
from fastmpl.telemetry.training_analysis import Targets
from tests.report.sample import answers, predictions, write_sample

RNG = np.random.default_rng(1)


def with_confidence(truth: list[int], predicted: list[int], confidence: list[float]) -> Predictions:
    """Answers without pictures; the second class has half of what is left."""
    count, sure = len(truth), np.array(confidence, np.float32)
    names = np.array([f"{number}.jpg" for number in range(count)])
    nothing = np.empty((0, 1, 1, 3), np.uint8)
    second = (np.array(predicted) + 1) % 3
    return Predictions(
        names, np.array(truth), np.array(predicted), sure, second, (1 - sure) / 2, np.empty(0, np.int64), nothing
    )


def test_the_matrix_counts_every_image_once_and_its_trace_is_the_accuracy() -> None:
    found = answers(500, 4, 0.8, RNG)
    counts = confusion(found, np.arange(4))
    assert counts.sum() == 500
    assert np.trace(counts) / counts.sum() == found.right.mean()
    assert counts[2, 3] == ((found.truth == 2) & (found.predicted == 3)).sum()


def test_the_worst_pairs_have_a_direction_and_their_share_of_the_true_class() -> None:
    found = with_confidence([0, 0, 0, 0, 1, 1, 2], [0, 1, 1, 2, 1, 0, 2], [0.9] * 7)
    pairs = worst_pairs(found, ("cat", "dog", "eel"))
    assert [tuple(pair) for pair in pairs] == [("cat", "dog", 2, 0.5), ("dog", "cat", 1, 0.5), ("cat", "eel", 1, 0.25)]


def test_of_many_classes_those_with_the_most_errors_are_drawn() -> None:
    found = answers(4000, 1000, 1.0, RNG)
    wrong = found._replace(predicted=np.where(found.truth == 700, 701, found.predicted))
    chosen = classes_to_draw(wrong, 1000)
    assert {700, 701} <= set(chosen.tolist()) and len(chosen) == 16


def test_calibration_is_that_of_hand_computed_bins() -> None:
    found = with_confidence([0, 0, 1, 1], [0, 1, 1, 1], [0.95, 0.95, 0.62, 0.62])
    bins = sort_into_bins(found)  # two images say 0.95 and half are right; two say 0.62 and all are right
    assert bins.error == pytest.approx(0.5 * 0.45 + 0.5 * 0.38, abs=1e-6)
    assert bins.excess == pytest.approx(0.5 * 0.45 - 0.5 * 0.38, abs=1e-6)
    assert sort_into_bins(found._replace(confidence=np.ones(4, np.float32))).images[-1] == 4


def test_errors_come_most_confident_first_and_doubtful_images_with_the_smallest_margin() -> None:
    found = with_confidence([0, 0, 0, 0], [1, 0, 1, 2], [0.7, 0.4, 0.9, 0.8])
    classes = ("cat", "dog", "eel")
    assert [(card.file, card.label) for card in error_cards(found, classes)] == [
        ("2.jpg", "dog"), ("3.jpg", "eel"), ("0.jpg", "dog"),
    ]  # fmt: skip
    assert doubtful_cards(found, classes)[0].file == "1.jpg"


def test_wrong_labels_come_first_and_an_unknown_truth_is_no_error() -> None:
    record = predictions()
    assert record.labels is not None
    cards = label_cards(record.labels, record.classes)
    assert [card.wrong for card in cards] == sorted((card.wrong for card in cards), reverse=True)
    assert all(not card.wrong for card in cards if not card.truth)
    assert {name for card in cards for name, _ in card.pictures} == {"weak", "strong"}


def test_labels_that_were_measured_over_training_show_how_they_moved(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "run")
    names, classes = ["unlabelled/3.jpg", "unlabelled/5.jpg"], ["cat", "dog"]
    found = [
        Targets(step, 0.5, 0.9, [0, 1], [[1 - share, share], [share, 1 - share]], names, [0, 1], classes)
        for step, share in ((0, 0.25), (1500, 0.75), (3000, 0.9375))
    ]
    with Log(folder, loggers=[]) as log:
        for one in [*found, found[0]._replace(step=9, names=[3]), found[0]._replace(step=10, probabilities=[["x"], 3])]:
            log.analysis(one)
    page = write_report(folder).read_text()
    moved = re.findall(r"<li><span>([\d,]+)</span> (cat|dog) ([\d.]+).%</li>", page)
    one, other = [("0", "cat", "75.0"), ("1,500", "dog", "75.0"), ("3,000", "dog", "93.8")], ["dog", "cat", "cat"]
    mirrored = [(step, label, share) for (step, _, share), label in zip(one, other, strict=True)]
    assert moved in ([*one, *mirrored], [*mirrored, *one])
    assert "How the label of some images moved" in page


def test_coverage_by_class_counts_labels_at_or_above_the_threshold() -> None:
    record = predictions()
    assert record.labels is not None
    sample = record.labels._replace(
        label=np.array([0, 0, 1]), confidence=np.array([0.5, 0.6, 1.0], np.float32), truth=np.array([0, 1, -1]),
        threshold=float(np.float32(0.6)),
    )  # fmt: skip
    rows = {row.name: row for row in labelled_classes(sample, ("a", "b", "c"))}
    assert (rows["a"].images, rows["a"].coverage, rows["a"].right) == (2, 0.5, 0.5)
    assert rows["b"].coverage == 1 and math.isnan(rows["b"].right)
    assert never_given(sample, ("a", "b", "c")) == ["c"]


@pytest.mark.parametrize("side", [8, 96])
def test_a_picture_in_the_page_is_the_picture_in_the_file(side: int) -> None:
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[: side // 2, :, 0] = 200
    kind, content = re.fullmatch("data:image/(png|jpeg);base64,(.*)", data_uri(pixels)).groups()  # type: ignore[union-attr]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)
    assert (kind == "png") == (side == 8)
    assert np.abs(shown - pixels).mean() < 4


def test_errors_csv_lists_every_wrong_image_of_every_split(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "run")
    write_report(folder)
    record = predictions()
    rows = list(csv.DictReader(io.StringIO((folder / "errors.csv").read_text())))
    assert len(rows) == sum(int((~found.right).sum()) for found in record.splits.values())
    assert all(row["true"] != row["predicted"] for row in rows)
    shares = [float(row["confidence"]) for row in rows if row["split"] == "test"]
    assert shares == sorted(shares, reverse=True)


def test_the_page_of_a_thousand_classes_and_many_errors_stays_small(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "run")
    draws = np.random.default_rng(2)
    record = predictions(1000)
    many = answers(20_000, 1000, 0.5, draws, pictures=0)
    pictures = draws.integers(0, 256, (36, 96, 96, 3)).astype(np.uint8)  # noise: the largest JPEG there is
    wrong = np.flatnonzero(~many.right)[np.argsort(-many.confidence[~many.right], kind="stable")]
    shown = many._replace(shown=np.sort(wrong[:36]), pictures=pictures)
    assert record.labels is not None
    views = draws.integers(0, 256, (2, 24, 96, 96, 3)).astype(np.uint8)
    labels = record.labels._replace(shown=np.arange(24), weak=views[0], strong=views[1])
    (folder / FILE).write_bytes(record._replace(splits={"test": shown}, labels=labels).encode())
    assert write_report(folder).stat().st_size < 3_000_000


def test_a_run_without_predictions_still_gets_its_report(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "run")
    (folder / FILE).unlink()
    page = write_report(folder).read_text()
    assert "no pictures of single images" in page and "What it confuses" not in page
    assert not (folder / "errors.csv").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.encode()[:-200],
        lambda record: b"PK\x05\x06" + b"\0" * 18,
        lambda record: b"",
        lambda record: record._replace(classes=("one",)).encode(),
        lambda record: record._replace(
            splits={"test": record.splits["test"]._replace(truth=np.zeros(3, int))}
        ).encode(),
        lambda record: record._replace(
            splits={"test": record.splits["test"]._replace(names=np.array([{}] * 500))}
        ).encode(),
        lambda record: record._replace(
            splits={"test": record.splits["test"]._replace(shown=np.array([10**9] * 6))}
        ).encode(),
        lambda record: record._replace(
            splits={"test": record.splits["test"]._replace(pictures=np.zeros((6, 0, 4, 3), np.uint8))}
        ).encode(),
    ],
    ids=["cut", "empty zip", "empty", "fewer classes", "other lengths", "objects", "rows out of range", "no pixels"],
)
def test_damaged_predictions_are_a_sentence_of_the_report(tmp_path: Path, change: object) -> None:
    folder = write_sample(tmp_path / "run")
    (folder / FILE).write_bytes(change(predictions()))  # type: ignore[operator]
    page = write_report(folder).read_text()
    assert "predictions.npz is damaged" in page and "What it confuses" not in page


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    record = predictions()
    (tmp_path / FILE).write_bytes(record.encode())
    again = Record.read(tmp_path / FILE)
    assert again.encode() == record.encode()
    assert again.labels is not None and again.labels.threshold == 0.6


def feedback_of(
    folder: Path, values: list[float], sizes: list[float], ratio: float | None = None, **method: str
) -> list[str]:
    """The warnings of a run with these values in its lines."""
    folder.mkdir()
    save(Config.model_validate({"feedback": method} if method else {}), folder / "config.toml")
    with Log(folder, loggers=[]) as log:
        for number, (value, size) in enumerate(zip(values, sizes, strict=True), 1):
            line = {"feedback": value, "feedback_size": size} | ({} if ratio is None else {"feedback_ratio": ratio})
            log.train(50 * number, line, seconds=1.0, images_per_second=10.0, waiting=0.0)
    found = describe_feedback(read_run(folder))
    return [] if found is None else list(found.alarms)


def test_each_alarm_of_the_feedback_speaks_for_its_own_fault(tmp_path: Path) -> None:
    fine = [0.1, -0.1, 0.2, 0.1, -0.1, 0.2, 0.1, 0.1]
    same = [1.0] * 8
    assert feedback_of(tmp_path / "fine", fine, same) == []
    (wrong,) = feedback_of(tmp_path / "wrong", [-0.1, -0.1, 0.1, -0.1, -0.1, 0.1, -0.1, -0.1], same)
    assert "wrong way" in wrong
    (run,) = feedback_of(tmp_path / "run", [*[0.1] * 3, *[-0.1] * 5, *[0.1] * 8], [1.0] * 16)
    assert "From step 200 to 400" in run
    assert feedback_of(tmp_path / "equal", fine, same, 1.0) == []
    (small,) = feedback_of(tmp_path / "small", fine, same, 0.004)
    assert "never more than 0.4 %" in small
    (large,) = feedback_of(tmp_path / "large", fine, same, 30.0)
    assert "more than 10 times the supervised one in 100 %" in large
    (faded,) = feedback_of(tmp_path / "faded", fine, [1.0, 1.0, 0.5, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert "1 % of what it was" in faded
    (zero,) = feedback_of(tmp_path / "zero", [0.0] * 8, [0.0] * 8)
    assert "zero throughout" in zero
    assert feedback_of(tmp_path / "off", [0.0] * 8, [0.0] * 8, kind="off") == []


def test_the_longest_wrong_way_has_its_steps() -> None:
    assert tuple(longest_wrong_way([1, 2, 3, 4, 5], [-1, 1, -1, -1, 2])) == (2, 3, 4)
    assert longest_wrong_way([1], [0.0]).intervals == 0


def test_format_errors_writes_names_that_a_terminal_may_show() -> None:
    record = predictions()
    found = record.splits["test"]
    names = np.array(["a\x1b[31m\udcff.jpg"] * len(found.truth))
    text = format_errors(record._replace(splits={"test": found._replace(names=names)}))
    assert "\x1b" not in text and r"a\x1b[31m\udcff.jpg" in text
