"""From a folder of pictures to predictions by the command line alone; and what each verb refuses, with its exit code."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from fastmpl import cli
from fastmpl.commands.evaluate import evaluate
from fastmpl.commands.predict import predict
from fastmpl.commands.status import status
from fastmpl.config import load
from fastmpl.run import trainer
from fastmpl.run.classifier import load_classifier
from fastmpl.run.folder import lock_folder, write_status
from tests.pictures import BAD, COLOURS, make, spoil

CONFIGS = Path(__file__).parents[2] / "launch" / "configs"
SHORT = [
    *("--run.steps", "12", "--run.evaluate_every", "6", "--run.log_every", "4", "--data.image_size", "16"),
    *("--teacher.width", "16", "--student.width", "16", "--student.average", "0.8", "--data.batch_unlabelled", "24"),
    *("--teacher.model", "conv", "--student.model", "conv", "--data.batch_labelled", "24", "--data.validation", "12"),
    *("--teacher.warmup", "2", "--student.warmup", "2", "--method.name", "mpl", "--feedback.kind", "exact"),
    *("--student.optimiser", "sgd", "--student.lr", "0.05", "--student.weight_decay", "0.0005", "--uda.weight", "1.0"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with several hundred pictures, bad files among them, and the run `my_pictures` trained there."""
    with pytest.MonkeyPatch.context() as patch:
        here = tmp_path_factory.mktemp("place")
        patch.setenv("XDG_CACHE_HOME", str(here / "cache"))
        patch.chdir(here)
        make(here / "my pictures", labelled=40, unlabelled=60, test=20)
        for part in ("labelled/red", "unlabelled", "test/red"):
            spoil(here / "my pictures" / part, np.random.default_rng(1))
        assert cli.main(["init", "my pictures"]) == 0
        with (here / "train.log").open("w") as log, redirect_stdout(log):
            assert cli.main(["train", "my_pictures.toml", *SHORT]) == 0
        yield here


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    return place


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> str:
    """What the command prints: on stderr where it fails, which is one line."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    if not code:
        return out
    assert len(err.splitlines()) == 1
    return err


# -- the whole way


def test_a_folder_trains_from_init_to_a_report(here: Path) -> None:
    results = json.loads((here / "runs/my_pictures/results.json").read_text())
    assert results["steps"] == 12
    assert {"validation", "test"} == results["last"]["student"].keys()
    assert results["last"]["average"]["test"] > 0.5  # of three colours
    page = (here / "runs/my_pictures/report.html").read_text()
    assert "<script>alert(1)" not in page


def test_check_lists_every_bad_file_with_its_reason(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "check", "my_pictures.toml").splitlines()
    skipped = [line for line in lines if line.startswith("skipped")]
    assert len(skipped) == 3 * len(BAD)
    for name, reason in BAD.items():
        assert sum(f"/{name}: " in line and reason in line for line in skipped) == 3
    assert "folder: 3 classes, 96 labelled, 0 trusted, 180 unlabelled, 24 validation, 60 test images" in lines[2]


def test_check_tells_whether_the_step_can_be_one_graph_and_what_stands_in_the_way(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("check", "my_pictures.toml", "--method.name", "mpl", "--feedback.kind", "exact", "--teacher.model", "conv")
    assert said(capsys, *asked).splitlines()[-1] == "graph   the whole step can be one CUDA graph"
    assert said(capsys, *asked, "--system.graph", "off").splitlines()[-1].startswith("graph   none: ")

    def reads(values: list[torch.Tensor]) -> torch.Tensor:
        return values[0] * float(values[0])

    monkeypatch.setattr("fastmpl.step.mpl_step.mean", reads)
    assert "test_verbs.py" in said(capsys, *asked).splitlines()[-1]
    assert "host read" in said(capsys, *asked).splitlines()[-1]


def test_training_says_how_many_files_it_leaves_out(here: Path) -> None:
    assert f", {3 * len(BAD)} left out (" in (here / "train.log").read_text()


def test_check_warns_of_test_images_that_are_trained_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "warning" not in said(capsys, "check", "my_pictures.toml")
    copy = shutil.copytree(here / "my pictures", here / "leaky", symlinks=True)
    image = next((copy / "test" / "red").glob("*.jpg"))
    shutil.copyfile(image, copy / "unlabelled" / "copy.jpg")
    told = said(capsys, "check", "my_pictures.toml", "--data.root", "leaky")
    twins = f"test/red/{image.name} is the same picture as unlabelled/copy.jpg"
    assert f"warning 1 test images are also unlabelled training images: {twins}" in told


def test_evaluate_finds_what_training_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(Path("runs/my_pictures"))
    recorded = json.loads((here / "runs/my_pictures/results.json").read_text())["headline"]
    assert found.classes == tuple(sorted(COLOURS))
    assert {one.name: one.accuracy for one in found.sets} == {
        split: recorded[split] for split in ("validation", "test")
    }
    text = said(capsys, "evaluate", "runs/my_pictures", "--data", "my pictures/test")
    assert f"{100 * recorded['test']:.1f} % of 60 images are right" in text
    assert "blau grün" in text


def test_predictions_are_those_that_evaluation_counts(here: Path) -> None:
    right = total = 0
    for found in predict(Path("runs/my_pictures"), [Path("my pictures/test")]):
        if found.label is not None:
            right += found.label in Path(found.file).parts
            total += 1
    judged = evaluate(Path("runs/my_pictures")).sets
    test = next(one for one in judged if one.name == "test")
    assert (right, total) == (np.trace(test.confusion), 60)


def test_predictions_as_a_table_have_a_row_for_every_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("predict", "runs/my_pictures", "my pictures/unlabelled", "my pictures/labelled/red/notes.txt")
    assert cli.main(asked) == 0
    text, skipped = capsys.readouterr()
    rows = list(csv.DictReader(text.splitlines()))
    unreadable = len(BAD) - 2  # two of them are no image by their names
    assert len([line for line in skipped.splitlines() if line.startswith("skipped ")]) == 2
    assert len(rows) == 180 + unreadable + 1
    assert rows[-1]["file"] == "my pictures/labelled/red/notes.txt"
    assert rows[-1]["problem"].startswith("not an image")
    labelled = [row for row in rows if not row["problem"]]
    assert len(labelled) == 180
    assert {row["label"] for row in labelled} <= set(COLOURS)
    assert all(1 / 3 <= float(row["confidence"]) <= 1 for row in labelled)


def test_predictions_as_json_have_every_class(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = here / "out.json"
    picture = next(Path("my pictures/test/red").glob("*.png"))
    said(capsys, "predict", "runs/my_pictures", picture, "--format", "json", "--output", out)
    (found,) = json.loads(out.read_text())
    assert found["file"] == str(picture)
    assert found["probabilities"].keys() == set(COLOURS)
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    assert found["confidence"] == max(found["probabilities"].values())


def test_predictions_do_not_depend_on_what_else_is_asked(here: Path) -> None:
    everything = {one.file: one for one in predict(Path("runs/my_pictures"), [Path("my pictures/test")])}
    picture = next(file for file, one in everything.items() if one.label)
    (alone,) = predict(Path("runs/my_pictures"), [Path(picture)])
    assert alone.probabilities == pytest.approx(everything[picture].probabilities, abs=1e-5)


# -- init


def test_init_suits_the_pictures_and_says_why(here: Path) -> None:
    config = load(here / "my_pictures.toml")
    assert (config.run.name, config.data.source, config.data.root) == ("my_pictures", "folder", "my pictures")
    assert (config.data.labels, config.data.validation) == (0, 24)  # a fifth of 40, of each class
    assert (config.data.image_size, config.method.name, config.student.model) == (24, "uda", "wrn_16_1")
    assert "the shorter side of a typical image has" in (here / "my_pictures.toml").read_text()


def test_init_never_writes_over_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (here / "my_pictures.toml").read_text()
    assert "my_pictures.toml exists already" in said(capsys, "init", "my pictures", code=2)
    assert (here / "my_pictures.toml").read_text() == before


def test_init_makes_a_name_of_any_folders_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / 'Bilder "für" ∑/', labelled=1, unlabelled=1, test=0)
    said(capsys, "init", root, "--output", tmp_path / "c.toml")
    config = load(tmp_path / "c.toml")
    assert (config.run.name, config.data.root, config.data.validation) == ("Bilder_f_r", str(root), 0)


# -- status


def test_status_says_what_a_run_reached(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "status", "runs/my_pictures")
    assert "done at step 12 of 12" in text
    assert "step-12" in text
    assert "accuracy    average: " in text and "accuracy    student.safetensors: " in text


def test_status_tells_a_running_run_from_a_lost_one(here: Path, tmp_path: Path) -> None:
    run = shutil.copytree(here / "runs/my_pictures", tmp_path / "run")
    write_status(run, "running", 6)  # the newest checkpoint, of step 12, tells what is saved
    assert "lost, saved at step 12 of 12" in list(status(run))[1]
    with lock_folder(run):
        assert f"running, saved at step 12 of 12 (process {os.getpid()} on " in list(status(run))[1]


def test_status_of_a_running_run_tells_the_time_left(here: Path, tmp_path: Path) -> None:
    """Lines at steps 4 and 8 that are 6 s apart: the 4 steps that are left of 12 take 6 s more."""
    run = shutil.copytree(here / "runs/my_pictures", tmp_path / "run")
    line = '{"kind": "train", "step": %d, "seconds": %.1f, "images_per_second": 32.0}\n'
    (run / "metrics.jsonl").write_text(line % (4, 10.0) + line % (8, 16.0))
    write_status(run, "running", 8)
    assert "training    step 8 of 12, 32 images/s" in list(status(run))  # nobody trains it
    with lock_folder(run):
        assert "training    step 8 of 12, 32 images/s, 6 s left" in list(status(run))


# -- what is refused


def without_a_class(root: Path) -> None:
    (root / "labelled" / "empty").mkdir()


def in_no_class_folder(root: Path) -> None:
    shutil.rmtree(root / "labelled")
    (root / "labelled").mkdir()
    Image.new("RGB", (8, 8)).save(root / "labelled" / "img_001.jpg")


def in_an_unknown_test_class(root: Path) -> None:
    (root / "test" / "other").mkdir(parents=True)


@pytest.mark.parametrize("change", [without_a_class, in_no_class_folder, in_an_unknown_test_class, shutil.rmtree])
def test_a_folder_that_cannot_be_used_is_exit_code_3_and_one_sentence(
    change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    root = make(tmp_path / "data", labelled=4, unlabelled=4, test=0)
    said(capsys, "init", "data")
    change(root)
    short = [*SHORT, "--data.validation", "3"]
    sentences = {said(capsys, verb, "data.toml", *short, code=3) for verb in ("check", "train")}
    assert len(sentences) == 1
    assert sentences.pop().startswith("Data: ")


def test_trusted_images_that_are_not_there_are_missed_before_training(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (("--feedback.images", "trusted"), ("--finetune.images", "trusted", "--finetune.steps", "1")):
        sentence = said(capsys, "train", "my_pictures.toml", *SHORT, "--run.name", "t", *options, code=3)
        assert "has no folder trusted: put clean images into trusted/<class>/" in sentence


def test_a_run_without_test_and_validation_images_still_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make(tmp_path / "data", labelled=1, unlabelled=4, test=0)
    said(capsys, "init", root, "--output", tmp_path / "c.toml")
    output = ("--run.output", str(tmp_path / "runs"))
    few = ("--data.batch_labelled", "3", "--data.batch_unlabelled", "4")
    said(capsys, "train", tmp_path / "c.toml", *SHORT, *few, "--data.validation", "0", "--run.steps", "2", *output)
    said(capsys, "report", tmp_path / "runs" / "data")
    sentence = said(capsys, "evaluate", tmp_path / "runs" / "data", code=3)
    assert sentence == "Data: The run has neither validation nor test images. Name some by --data FOLDER.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("predict", "runs/my_pictures"), 2, "needs image files, or folders of them"),
        (("predict", "runs/my_pictures", "nothing"), 3, "nothing does not exist"),
        (("predict", "runs/my_pictures", "cache"), 3, "cache has no image files"),
        (("predict", "runs/my_pictures", "my_pictures.toml"), 3, "none of the files can be read"),
        (("predict", "runs/my_pictures", "my pictures/test", "--output", "no/o.csv"), 5, "no/o.csv cannot be written"),
        (("predict", "runs", "my pictures"), 2, "runs has no student.safetensors"),
        (("evaluate", "runs/my_pictures", "--data", "nothing"), 3, "nothing is not a folder"),
        (("evaluate", "runs/my_pictures", "--data", "cache"), 3, "has the class fastmpl, which the run has not"),
        (("evaluate", "runs"), 2, "runs has no student.safetensors"),
        (("status", "cache"), 2, "cache is not the folder of a run"),
        (("init", "nothing"), 3, "does not exist"),
        (("init", "my_pictures.toml"), 3, "is a file"),
        (("init", "my pictures", "--output", "no/c.toml"), 5, "no/c.toml cannot be written"),
    ],
)
def test_every_mistake_is_one_sentence_and_its_exit_code(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    assert sentence in said(capsys, *arguments, code=code)


def test_weights_that_are_damaged_are_one_sentence(here: Path, tmp_path: Path) -> None:
    run = shutil.copytree(here / "runs/my_pictures", tmp_path / "run")
    content = (run / "student.safetensors").read_bytes()
    for damage in (b"", content[:-1], b"x" * 100, content[:8] + b"?" + content[9:]):
        (run / "student.safetensors").write_bytes(damage)
        assert cli.main(["evaluate", str(run)]) == 2


# -- weights


def test_a_student_of_timm_is_saved_as_timm_would(tmp_path: Path) -> None:
    changes = {
        "run.output": str(tmp_path),
        "run.steps": 1,
        "data.batch_unlabelled": 8,
        "data.batch_labelled": 8,
        "data.image_size": 32,
        "student.model": "timm:resnet18",
        "student.dropout": 0.2,
        "method.name": "supervised",
    }
    trainer.train(load(CONFIGS / "digits.toml", changes | {"feedback.kind": "off"}), quiet=True, report=False)
    theirs = timm.create_model("resnet18", num_classes=10).eval()
    theirs.load_state_dict(load_file(tmp_path / "digits" / "student.safetensors"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), load_classifier(tmp_path / "digits").module(images))
