"""`fastmpl check` over encoded images: each bad file once, with its reason, and left out by every run after it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastmpl import cli
from fastmpl.commands.check import check_data
from fastmpl.config import Config
from fastmpl.config.load import build
from fastmpl.data.errors import DataError
from fastmpl.data.prepare import Prepared, prepare
from tests import mini_imagenet
from tests.pictures import BAD, COLOURS, DECODED_BAD, kinds, make, spoil

SPOILT = ("labelled/red", "unlabelled", "test/red")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures of every kind, bad files of every kind in each part, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    root = make(tmp_path / "pictures", labelled=13, unlabelled=5, test=3)
    for part in SPOILT:
        spoil(root / part, np.random.default_rng(0))
    return root


def config(root: Path, **changes: object) -> Config:
    values = {"source": "folder", "root": str(root), "decode": "always", "labels": 0, "validation": 6, "image_size": 16}
    keys = {f"data.{name}": value for name, value in (values | changes).items()}
    return build(keys, dict.fromkeys(keys, "test"))


def checked(root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the command says."""
    file = Path("config.toml")
    file.write_text(
        f'[data]\nsource = "folder"\nroot = {json.dumps(str(root))}\ndecode = "always"\nlabels = 0\nvalidation = 6\n'
        "image_size = 16\nbatch_labelled = 8\nbatch_unlabelled = 8\n"
    )
    assert cli.main(["check", str(file)]) == 0
    return capsys.readouterr().out.splitlines()


def names(prepared: Prepared) -> set[str]:
    return set(prepared.arrays.names)


def test_each_bad_file_is_listed_with_its_reason(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = checked(root, capsys)
    for part in SPOILT:
        for name, reason in BAD.items():
            assert any(f"{part}/{name}: " in line and reason in line and line.startswith("skipped") for line in lines)
    (images,) = [line for line in lines if line.startswith("images")]
    assert f"{3 * len(DECODED_BAD)} are bad and left out" in images
    (files,) = [line for line in lines if line.startswith("files")]
    count = 3 * (13 + 5 + 3)
    assert f"{count + 3 * len(BAD)} entries: {count} images, {3 * len(BAD)} left out (" in files
    for said in ("four channels of ink (CMYK)", "16 bits a channel", "is animated"):
        assert any(line.startswith("note") and said in line for line in lines)


def test_a_run_leaves_out_what_was_found_bad(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = prepare(config(root).data, seed=0)
    checked(root, capsys)
    after = prepare(config(root).data, seed=0)
    bad = {f"{part}/{name}" for part in SPOILT[:2] for name in DECODED_BAD}
    assert names(before) - names(after) == bad
    assert len(before.arrays.test_labels) - len(after.arrays.test_labels) == len(DECODED_BAD)
    for part in ("labelled", "validation", "unlabelled"):
        index = getattr(after.split, part)
        folder = "unlabelled" if part == "unlabelled" else "labelled"
        assert all(after.arrays.names[i].startswith(f"{folder}/") for i in index)
    labels = [after.arrays.classes[label] for label in after.arrays.train_labels[after.split.labelled]]
    assert labels == [after.arrays.names[i].split("/")[1] for i in after.split.labelled]


def test_a_list_is_of_the_files_that_were_checked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checked(root, capsys)
    (root / "unlabelled" / "another.jpg").write_bytes(b"")
    assert any(name.endswith("empty.jpg") for name in names(prepare(config(root).data, seed=0)))
    checked(root, capsys)
    assert not any(name.endswith(("empty.jpg", "another.jpg")) for name in names(prepare(config(root).data, seed=0)))


def test_a_damaged_list_is_no_list(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = prepare(config(root).data, seed=0)
    checked(root, capsys)
    (file,) = (tmp_path / "cache" / "fastmpl").glob("checked-*.jsonl")
    file.write_text(file.read_text()[:-20])
    assert names(prepare(config(root).data, seed=0)) == names(before)


def test_without_a_cache_bad_files_are_still_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert any("no cache can be written" in line for line in checked(root, capsys))


# -- pictures in two places


def test_a_picture_in_two_parts_is_reported_once_for_each_pair_of_parts(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = [line for line in checked(root, capsys) if line.startswith("warning")]
    assert clean == []
    rng = np.random.default_rng(5)
    drawn = [content for suffix, content in kinds(rng, COLOURS["red"]) if suffix == ".png"]
    for place in ("test/red/twin 1.png", "unlabelled/twin 2.png"):
        (root / place).write_bytes(drawn[0])
    for place in ("labelled/red/both 1.png", "labelled/blau grün/both 2.png"):
        (root / place).write_bytes(drawn[1])
    shutil.copy(root / "labelled" / "red" / "both 1.png", root / "test" / "red" / "both 3.png")
    said = "\n".join(line for line in checked(root, capsys) if line.startswith("warning"))
    twins = "test/red/twin 1.png is the same picture as unlabelled/twin 2.png"
    assert f"1 test images are also unlabelled training images: {twins}" in said
    assert "1 labelled images are of two classes at once: " in said
    assert "test/red/both 3.png is the same picture as labelled/" in said


def test_files_that_are_left_out_are_told_before_a_batch_is_refused(root: Path) -> None:
    found = check_data(config(root, batch_labelled=500))
    lines: list[str] = []
    with pytest.raises(DataError, match=r"data\.batch_labelled = 500, and there are 33 labelled images"):
        lines += found
    assert any(line.startswith("skipped") for line in lines)
    assert lines[3].startswith("note    6 validation images: each is 17 points of the accuracy")


def test_a_class_without_test_images_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "test" / "blau grün")
    assert any(line.startswith("warning no test image is of class blau grün") for line in checked(root, capsys))


def test_a_bad_picture_in_a_tar_is_named_with_its_tar_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    images = list(mini_imagenet.pictures(labelled=2, unlabelled=9, test=1, size=(40, 30)))
    number = next(number for number, image in enumerate(images) if image.part == "unlabelled")
    images[number] = images[number]._replace(jpeg=images[number].jpeg[:500])
    tars = mini_imagenet.write_tars(tmp_path / "tars", iter(images), each=8)
    Path("tars.toml").write_text(
        f'[data]\nsource = "webdataset"\nroot = {json.dumps(str(tars))}\nlabels = 0\nvalidation = 0\n'
        "batch_labelled = 8\nbatch_unlabelled = 8\n"
    )
    assert cli.main(["check", "tars.toml"]) == 0
    said = capsys.readouterr().out
    assert f"skipped {tars}/unlabelled/00000.tar: {images[number].name}.jpg: damaged" in said
    left = prepare(config(tars, source="webdataset", decode="auto", validation=0).data, seed=0)
    assert len(left.split.unlabelled) == 8
    assert f"{images[number].name}.jpg" not in left.arrays.names
