"""`fastmpl.load`: a finished run predicts, evaluates and exports in Python as the commands do."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastmpl
from fastmpl.cli import main
from fastmpl.commands.evaluate import SetScores, evaluate, format_scores
from fastmpl.config import load
from fastmpl.data.errors import DataError
from fastmpl.errors import ConfigError
from tests.pictures import make

SHORT = {
    "run.steps": 6, "run.evaluate_every": 6, "data.image_size": 16, "data.batch_labelled": 6, "data.batch_unlabelled": 12,
    "student.model": "conv", "student.width": 8, "data.validation": 3, "student.average": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, and the run that was trained on them."""
    folder = tmp_path_factory.mktemp("place")
    pictures = make(folder / "pictures", labelled=8, unlabelled=12, test=4)
    source = {"data.source": "folder", "data.root": str(pictures), "data.labels": 0, "run.output": str(folder)}
    fixed = {"method.name": "uda", "feedback.kind": "off", "run.name": "run"}
    fastmpl.train(load(fastmpl_digits(), source | fixed | SHORT), quiet=True)
    return folder


def fastmpl_digits() -> Path:
    return Path(__file__).parents[2] / "launch" / "configs" / "digits.toml"


def test_files_folders_and_arrays_are_predicted_as_the_command_predicts_files(place: Path) -> None:
    run, table = fastmpl.load(place / "run"), place / "table.csv"
    assert main(["predict", str(place / "run"), str(place / "pictures/test"), "--output", str(table)]) == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    found = run.predict(place / "pictures/test")
    assert [(p.file, p.label, f"{p.confidence:.6f}") for p in found] == [
        (row["file"], row["label"], row["confidence"]) for row in rows
    ]
    names = [row["file"] for row in rows]
    arrays = [np.asarray(Image.open(name).convert("RGB")) for name in names]
    assert [p.label for p in run.predict(names)] == [p.label for p in found]
    if Path(names[0]).suffix == ".png":  # a JPEG is decoded at a smaller size
        assert run.predict(arrays[0])[0].probabilities == pytest.approx(found[0].probabilities, abs=1e-5)
    assert len(run.predict([names[0], arrays[0], names[1]])) == 3
    opened = [Image.open(name) for name in names]
    assert [p.label for p in run.predict(opened)] == [p.label for p in found]
    assert run.predict(opened[0].convert("RGB"))[0].probabilities == run.predict(arrays[0])[0].probabilities
    assert len(run.predict(np.stack([arrays[0], arrays[0]]))) == 2


def test_a_run_evaluates_and_exports_as_the_commands_do(place: Path) -> None:
    run = fastmpl.load(str(place / "run"))
    sets = run.evaluate()
    expected = {one.name: one.accuracy for one in evaluate(place / "run")[-1]}
    assert {name: one.accuracy for name, one in sets.items()} == expected
    (one,) = run.evaluate(place / "pictures/test").values()
    assert one.accuracy == expected["test"]
    assert run.export("safetensors", place / "out.safetensors") == place / "out.safetensors"
    assert (place / "out.safetensors").is_file()
    assert run.module(torch.zeros(2, *run.student.image_shape)).shape == (2, len(run.classes))
    assert run.config.method.name == "uda"


def test_what_is_no_image_and_no_run_is_refused(place: Path, tmp_path: Path) -> None:
    run = fastmpl.load(place / "run")
    with pytest.raises(DataError, match="an image has floating-point pixels"):
        run.predict(Image.new("F", (4, 4)))
    with pytest.raises(DataError, match=r"array of float32 \[4, 4, 3\] is no RGB image"):
        run.predict(np.zeros((4, 4, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="does not exist"):
        run.predict("nothing.png")
    with pytest.raises(ConfigError):
        fastmpl.load(tmp_path)


def test_what_no_image_can_be_is_refused_in_a_sentence(place: Path) -> None:
    run = fastmpl.load(place / "run")
    none = [np.zeros((0, 8, 3), np.uint8), np.zeros((2, 8, 0, 3), np.uint8), torch.zeros(8, 8, 3), None, 3]
    for one in none:
        for given in (one, [one]) if one is not none[2] else ([one],):  # a tensor is a sequence of tensors
            with pytest.raises(DataError, match=r"is no (RGB )?image"):
                run.predict(given)  # type: ignore[arg-type]
    assert not run.predict(np.zeros((0, 8, 8, 3), np.uint8))


def test_names_that_a_run_does_not_know_are_refused_in_a_sentence(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"no network 'best'\. Its networks are selected, "):
        fastmpl.load(place / "run", "best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'tflite'\. The forms are onnx, "):
        fastmpl.load(place / "run").export("tflite")  # type: ignore[arg-type]
    for wrong in (print, fastmpl.Callback(), [print]):
        with pytest.raises(ConfigError, match=r"list of fastmpl\.Callback"):
            fastmpl.train(fastmpl_digits(), {"run.output": str(place / "none")}, callbacks=wrong)  # type: ignore[arg-type]
    assert not (place / "none").exists()


def test_the_package_is_imported_without_torch() -> None:
    import subprocess
    import sys

    program = "import sys, fastmpl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_scores_have_an_interval_and_name_the_classes_without_images() -> None:
    found = SetScores("test", 0.25, np.array([[8, 0, 0], [0, 0, 0], [1, 0, 7]]))
    first, *_, last = format_scores(("pears", "cherries", "apples"), found).splitlines()
    # Wilson's interval of 15 of 16, as scipy.stats.binomtest(15, 16).proportion_ci(method="wilson") has it
    assert first == "test: 93.8 % of 16 images are right (95 % interval 71.7 to 98.9), loss 0.250"
    assert last == "  no image is of class cherries"
    whole = format_scores(("a", "b"), SetScores("test", 0.0, np.array([[4, 0], [0, 6]])))
    assert "interval 72.2 to 100.0" in whole and "no image" not in whole
