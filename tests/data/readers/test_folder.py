"""A user's folder: what each picture is for, what is left out, what is refused, and that it is decoded once."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmpl.data import sources
from fastmpl.data.dataset import UNKNOWN, Arrays
from fastmpl.data.errors import DataError
from fastmpl.data.prepare import prepare
from fastmpl.data.readers import cache as cache_module
from fastmpl.data.readers.folder import read_folder, read_labelled
from fastmpl.data.readers.streamed_sources import read_files
from fastmpl.data.readers.tree import read_tree
from fastmpl.errors import ConfigError, StorageError
from tests.accounts import assert_adds_up
from tests.pictures import BAD, COLOURS, make, spoil

Make = Callable[..., SimpleNamespace]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return make(tmp_path / "my pictures", labelled=13, unlabelled=5, test=3, trusted=2)


def read(root: Path, size: int = 8) -> Arrays:
    return read_folder(str(root), size)


def same(a: Arrays, b: Arrays) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))


def test_every_part_of_the_folder_has_its_use(pictures: Path, settings: Make) -> None:
    arrays = sources.load(settings(source="folder", root=str(pictures), image_size=8))
    assert arrays.classes == tuple(sorted(COLOURS))
    assert arrays.train_images.shape == (3 * (13 + 2 + 5), 8, 8, 3)
    assert np.bincount(arrays.train_labels + 1).tolist() == [15, 15, 15, 15]
    assert arrays.trusted is not None
    assert arrays.trusted.tolist() == list(range(39, 45))
    assert (arrays.train_labels[45:] == UNKNOWN).all()
    assert np.bincount(arrays.test_labels).tolist() == [3, 3, 3]
    assert all(problem.used for problem in arrays.problems)


def test_labels_belong_to_their_images(pictures: Path) -> None:
    arrays = read(pictures)
    for number, name in enumerate(arrays.classes):
        mine = arrays.train_images[arrays.train_labels == number].reshape(-1, 3)
        coloured = mine[np.ptp(mine, axis=1) > 60]
        np.testing.assert_allclose(np.median(coloured, axis=0), COLOURS[name], atol=30)


def test_only_labelled_images_are_given_labels_and_only_trusted_ones_trusted(pictures: Path, settings: Make) -> None:
    section = settings(source="folder", root=str(pictures), image_size=8, labels=0, validation=6)
    prepared = prepare(section, seed=3)
    parts = prepared.split
    assert [len(part) for part in parts] == [33, 6, 15, 6]
    assert prepared.arrays.trusted is not None
    np.testing.assert_array_equal(parts.trusted, prepared.arrays.trusted)
    assert (parts.unlabelled >= 45).all()
    assert (prepared.targets[parts.unlabelled] == UNKNOWN).all()
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(60))


def test_some_of_the_trusted_images_can_be_asked_for(pictures: Path, settings: Make) -> None:
    section = settings(source="folder", root=str(pictures), image_size=8, labels=9, validation=0, trusted=3)
    parts = prepare(section, seed=0).split
    assert len(parts.trusted) == 3
    assert set(parts.trusted) < set(range(39, 45))
    assert not set(parts.unlabelled) & set(range(39, 45))
    with pytest.raises(DataError, match="trusted = 9 asks for 3 images of class"):
        prepare(settings(source="folder", root=str(pictures), image_size=8, trusted=9, validation=0), seed=0)


def test_the_order_of_files_does_not_depend_on_the_file_system(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def backwards(folder: Path) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(folder) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=True)

    def listed() -> list[list[str]]:
        tree = read_tree(str(pictures))
        assert tree.trusted is not None
        return [list(part.names) for part in (tree.labelled, tree.trusted, tree.unlabelled, tree.test)]

    first, scandir = listed(), os.scandir
    monkeypatch.setattr(os, "scandir", backwards)
    assert listed() == first
    assert first[2][:3] == [
        f"unlabelled/part 0/image {n:03d}é{ending}" for n, ending in ((0, ".jpg"), (1, ".JPEG"), (2, ".jpg"))
    ]


def test_bad_files_are_left_out_and_each_is_named_with_its_reason(pictures: Path) -> None:
    clean = read(pictures)
    for part in ("labelled/red", "unlabelled", "test/red"):
        spoil(pictures / part, np.random.default_rng(0))
    found = read(pictures)
    assert same(clean, found)
    reasons = {problem.file: problem.reason for problem in found.problems if not problem.used}
    assert len(reasons) == 3 * len(BAD)
    for part in ("labelled/red", "unlabelled", "test/red"):
        for name, reason in BAD.items():
            assert reason in reasons[str(pictures / part / name)]
    assert read(pictures).problems == found.problems  # out of the cache


def test_files_of_operating_systems_and_network_drives_are_left_out_and_counted(pictures: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "._image.jpg"):
        (pictures / "labelled" / "red" / name).write_bytes(b"x")
        (pictures / "labelled" / name).write_bytes(b"x")
    (pictures / "labelled" / ".ipynb_checkpoints").mkdir()
    thumbnails = pictures / "unlabelled" / "@eaDir" / "image.jpg"
    thumbnails.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(thumbnails / "SYNOPHOTO_THUMB_M.jpg")
    arrays = read(pictures)
    assert len(arrays.train_labels) == 60
    assert_adds_up(arrays)
    reasons = Counter(problem.reason.partition(" (")[0] for problem in arrays.problems if not problem.used)
    assert reasons == {
        "its name begins with a dot": 3,
        "it was made by an operating system or a network drive": 3,
        "its name begins with ._": 2,
    }


def test_links_in_circles_end_and_are_told(pictures: Path) -> None:
    os.symlink(pictures / "unlabelled", pictures / "unlabelled" / "again")
    os.symlink(pictures, pictures / "labelled" / "red" / "up")
    os.symlink("itself", pictures / "unlabelled" / "itself")
    arrays = read(pictures)
    assert len(arrays.train_labels) == 60
    assert sorted(Path(problem.file).name for problem in arrays.problems if not problem.used) == [
        "again",
        "itself",
        "up",
    ]
    assert_adds_up(arrays)


def test_folders_behind_links_are_read(pictures: Path, tmp_path: Path) -> None:
    before = read(pictures)
    (pictures / "labelled" / "red").rename(tmp_path / "red elsewhere")
    os.symlink(tmp_path / "red elsewhere", pictures / "labelled" / "red")
    (pictures / "unlabelled" / "part 1").rename(tmp_path / "part elsewhere")
    os.symlink("../../part elsewhere", pictures / "unlabelled" / "part 1")
    assert same(before, read(pictures))


def test_a_folder_that_two_links_lead_to_is_read_once_and_under_its_own_name(pictures: Path) -> None:
    os.symlink("part 1", pictures / "unlabelled" / "a link before it")
    arrays = read(pictures)
    assert len(arrays.train_labels) == 60
    assert not any("a link" in name for name in arrays.names)
    assert_adds_up(arrays)


def test_one_folder_is_not_two_classes(pictures: Path) -> None:
    os.symlink("red", pictures / "labelled" / "another")
    with pytest.raises(
        DataError, match=r"labelled/another has no images \(it holds .*: it is a link to a folder that is"
    ):
        read(pictures)


@pytest.mark.timeout(20)
def test_pipes_are_not_opened(pictures: Path) -> None:
    os.mkfifo(pictures / "labelled" / "red" / "pipe.jpg")
    os.mkfifo(pictures / "labelled" / "pipe")
    arrays = read(pictures)
    assert len(arrays.train_labels) == 60
    left_out = {Path(problem.file).name: problem.reason for problem in arrays.problems if not problem.used}
    assert left_out == dict.fromkeys(("pipe.jpg", "pipe"), "it is no regular file (a pipe, a socket or a device)")
    assert_adds_up(arrays)


def test_tiff_is_read(pictures: Path) -> None:
    Image.new("RGB", (30, 20), COLOURS["red"]).save(pictures / "labelled" / "red" / "a.tif")
    deep = np.full((20, 30), 40_000, np.uint16)
    Image.fromarray(deep).save(pictures / "labelled" / "red" / "b.TIFF")
    arrays = read(pictures)
    for name, colour in (("a.tif", COLOURS["red"]), ("b.TIFF", (156, 156, 156))):
        number = list(arrays.names).index(f"labelled/red/{name}")
        np.testing.assert_allclose(
            np.asarray(arrays.train_images[number]).reshape(-1, 3), np.tile(colour, (64, 1)), atol=1
        )


def test_a_tiff_of_floats_is_left_out_for_its_white_is_not_known(pictures: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(pictures / "unlabelled" / "a.tif")
    (problem,) = (problem for problem in read(pictures).problems if not problem.used)
    assert problem.reason.startswith("has floating-point pixels")


# -- the names of the parts


def test_the_parts_are_known_in_american_and_in_torchvisions_names(pictures: Path) -> None:
    before = read(pictures)
    (pictures / "unlabelled").rename(pictures / "unlabeled")
    (pictures / "labelled").rename(pictures / "Train")
    (pictures / "test").rename(pictures / "val")
    arrays = read(pictures)
    assert same(before, arrays)
    assert_adds_up(arrays)


def test_what_lies_beside_the_parts_is_counted(pictures: Path) -> None:
    for name in ("notes", "val", "train"):
        (pictures / name).mkdir()
    (pictures / "README.txt").touch()
    arrays = read(pictures)
    left_out = {Path(problem.file).name: problem.reason for problem in arrays.problems if not problem.used}
    assert left_out == {
        "README.txt": "it is none of the parts labelled, trusted, unlabelled and test",
        "notes": "it is none of the parts labelled, trusted, unlabelled and test",
        "train": "labelled is read as the part labelled",
        "val": "test images are read from test; data.validation takes its images from the labelled ones",
    }
    assert_adds_up(arrays)


def test_two_spellings_of_one_part_are_no_misspelling_of_another(pictures: Path) -> None:
    shutil.rmtree(pictures / "unlabelled")
    (pictures / "labeled").mkdir()  # nearly "unlabelled"
    left_out = {Path(problem.file).name: problem.reason for problem in read(pictures).problems if not problem.used}
    assert left_out == {"labeled": "labelled is read as the part labelled"}


def test_a_table_without_folders_leads_to_the_source_that_reads_it(pictures: Path) -> None:
    shutil.rmtree(pictures / "labelled")
    (pictures / "labels.csv").touch()
    with pytest.raises(DataError, match=r"it holds labels\.csv, test, .*read by data\.source = \"file_list\""):
        read(pictures)


def test_a_root_may_be_written_with_a_tilde_and_variables(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pictures.parent))
    monkeypatch.setenv("PICTURES", str(pictures))
    assert same(read(pictures), read(Path("~/my pictures")))
    assert same(read(pictures), read(Path("$PICTURES")))
    assert len(read_files("${PICTURES}").train_labels) == 60
    with pytest.raises(ConfigError, match=r"data.root = '\$NOWHERE/a' names the variable NOWHERE, which is not set"):
        read(Path("$NOWHERE/a"))
    with pytest.raises(
        DataError, match=r"data.root = 'pictures' does not exist \(looked for at /.*/pictures, and beside"
    ):
        read(Path("pictures"))


def test_a_class_name_is_printable_and_case_alone_is_pointed_out(pictures: Path) -> None:
    shutil.copytree(pictures / "labelled" / "red", pictures / "labelled" / "RED")
    assert read(pictures).remarks == (
        "the classes 'RED', 'red' differ only in upper and lower case, and are learned as 2 classes",
    )


def test_the_two_ways_to_write_an_accent_are_one_class(pictures: Path) -> None:
    (pictures / "test" / "blau grün").rename(pictures / "test" / "blau gru\u0308n")
    assert np.bincount(read(pictures).test_labels).tolist() == [3, 3, 3]


# -- what is refused


def drop(*parts: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for part in parts:
            shutil.rmtree(root / part)

    return change


def empty_class(root: Path) -> None:
    (root / "labelled" / "empty").mkdir()


def unreadable_class(root: Path) -> None:
    (root / "labelled" / "bad").mkdir()
    (root / "labelled" / "bad" / "a.jpg").write_bytes(b"x")


def loose_images(root: Path) -> None:
    shutil.rmtree(root / "labelled")
    (root / "labelled").mkdir()
    Image.new("RGB", (8, 8)).save(root / "labelled" / "img_001.jpg")


def one_class(root: Path) -> None:
    for name in list(COLOURS)[1:]:
        shutil.rmtree(root / "labelled" / name)


def other_test_class(root: Path) -> None:
    (root / "test" / "rde").mkdir()


def misspelt(root: Path) -> None:
    (root / "unlabelled").rename(root / "unlabled")


def two_ways_to_write_one(root: Path) -> None:
    for name in ("1", "01"):
        shutil.copytree(root / "labelled" / "red", root / "labelled" / name)


def unprintable_class(root: Path) -> None:
    (root / "labelled" / "a\nb").mkdir()


def no_trusted(root: Path) -> None:
    for path in (root / "trusted").rglob("*"):
        if path.is_file():
            path.unlink()


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (
        drop("labelled"),
        r"^Data: (?P<root>.*) has no folder labelled \(or train\)\. Expected (?P=root)/labelled/<class>/\*\.jpg; it holds "
        r"test, trusted, unlabelled\.$",
    ),
    (
        loose_images,
        r"^Data: no labelled images in (?P<l>.*/labelled)\. Expected (?P=l)/<class>/\*\.jpg; "
        r"found (?P=l)/img_001\.jpg \(it lies in no class folder\)\.$",
    ),
    (empty_class, r"labelled/empty has no images\. Put images there, or remove the folder\.$"),
    (unreadable_class, r"labelled/bad has 1 image files, and none can be read \(`fastmpl check` says why\)"),
    (one_class, r"labelled has one class \(red\), and a classifier needs two or more\.$"),
    (other_test_class, r"test has the class rde, which .*/labelled has not\. Did you mean 'red'\?$"),
    (misspelt, r"has no unlabelled\. Found unlabled: rename it to unlabelled\.$"),
    (
        unprintable_class,
        r"labelled: the class name 'a\\nb' holds the character U\+000A, which cannot be printed\. Rename",
    ),
    (two_ways_to_write_one, r"the classes '01', '1' are one number, written in different ways"),
    (no_trusted, r"trusted has no image that can be read"),
    (shutil.rmtree, r"does not exist\. Name the folder that holds labelled/<class>/\*\.jpg\.$"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED, ids=[sentence[:30] for _, sentence in REFUSED])
def test_what_cannot_be_trained_on_is_one_sentence(
    pictures: Path, change: Callable[[Path], None], sentence: str
) -> None:
    change(pictures)
    with pytest.raises(DataError, match=sentence) as refused:
        read(pictures)
    assert refused.value.exit_code == 3
    assert "\n" not in str(refused.value)


def test_one_image_a_class_leaves_none_for_validation(tmp_path: Path, settings: Make) -> None:
    section = {"source": "folder", "root": str(make(tmp_path / "few", labelled=1)), "image_size": 8, "labels": 0}
    with pytest.raises(DataError, match="No labelled images are left"):
        prepare(settings(**section, validation=3), seed=0)
    with pytest.raises(DataError, match=r"No labelled image of class .* is left to train on"):
        prepare(settings(**section, validation=1), seed=0)
    assert len(prepare(settings(**section, validation=0), seed=0).split.labelled) == 3


def test_a_folder_without_unlabelled_images_learns_from_the_labelled_ones_twice(pictures: Path, settings: Make) -> None:
    drop("unlabelled", "test", "trusted")(pictures)
    section = settings(source="folder", root=str(pictures), image_size=8, labels=0, validation=3)
    parts = prepare(section, seed=0).split
    np.testing.assert_array_equal(parts.unlabelled, parts.labelled)


def test_images_to_evaluate_on_may_lie_in_class_folders_or_below_test(pictures: Path) -> None:
    classes = tuple(sorted(COLOURS))
    whole = read_labelled(pictures, classes, 8)
    assert same(whole, read_labelled(pictures / "test", classes, 8))
    with pytest.raises(DataError, match="has the class red, which the run has not"):
        read_labelled(pictures / "test", ("a", *classes[:2]), 8)


# -- the cache


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache_module, "decode_all", fail)


def test_images_are_decoded_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(pictures)
    forbid_decoding(monkeypatch)
    assert same(first, read(pictures))
    monkeypatch.chdir(pictures.parent)
    assert same(first, read(Path("my pictures")))
    with pytest.raises(AssertionError):
        read(pictures, size=9)


def test_of_several_ranks_one_decodes(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    honest = cache_module.decode_all

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        time.sleep(0.2)
        return honest(*arguments)

    monkeypatch.setattr(cache_module, "decode_all", counted)
    with ThreadPoolExecutor(4) as ranks:
        first, *others = ranks.map(read, [pictures] * 4)
    assert all(same(first, other) for other in others)
    assert len(calls) == 1


def test_a_changed_folder_is_decoded_again_and_takes_no_more_space(pictures: Path, cache: Path) -> None:
    first = read(pictures)
    image = next((pictures / "test" / "red").glob("*.jpg"))
    Image.new("RGB", (30, 30), "black").save(image)
    second = read(pictures)
    assert not same(first, second)
    assert [path.suffix for path in sorted(cache.iterdir()) if path.is_dir()] == [""]
    image.unlink()
    assert len(read(pictures).test_labels) == 8


def test_what_a_killed_run_left_in_the_cache_is_made_again(pictures: Path, cache: Path) -> None:
    first = read(pictures)
    pixels = next(cache.glob("*/images.bin"))
    truncated = pixels.read_bytes()[:-1]
    pixels.unlink()  # `first` has it mapped
    pixels.write_bytes(truncated)
    assert same(first, read(pictures))
    next(cache.glob("*/facts.json")).write_text("{")
    assert same(first, read(pictures))


def test_without_a_place_for_a_cache_images_are_held_in_memory(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read(pictures)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    second = read(pictures)
    assert same(first, second)
    assert first.problems == second.problems


def test_a_disk_that_is_too_small_is_told_before_anything_is_decoded(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_decoding(monkeypatch)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"69 images of 8 x 8 pixels need .* Set XDG_CACHE_HOME"):
        read(pictures)


def test_a_disk_that_fills_up_leaves_no_half_cache(
    pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "_collect", full)
    with pytest.raises(StorageError, match="No space left on device"):
        read(pictures)
    assert not [path for path in cache.iterdir() if path.is_dir()]
