"""Names of image files: found by threads, kept in one string, and in an order of their own."""

import os
from pathlib import Path

import numpy as np
import pytest

from fastmpl.data.checks.copies import find_copies
from fastmpl.data.files.encoded import Names
from fastmpl.data.files.listing import list_image_files
from fastmpl.data.split import Split


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_a_folders_own_files_come_before_those_in_its_folders(tmp_path: Path) -> None:
    touch(
        tmp_path, "a/z.jpg", "a/b/y.png", "a/b/c/x.JPEG", "a/a/w.gif", "a/.hidden.jpg", "b/1.jpg", "b/10.jpg", "b/2.jpg"
    )
    first, second = list_image_files(tmp_path, ["a", "b"])
    assert list(first.names) == ["a/z.jpg", "a/a/w.gif", "a/b/y.png", "a/b/c/x.JPEG"]
    assert list(second.names) == ["b/1.jpg", "b/10.jpg", "b/2.jpg"]
    assert [(Path(problem.file).name, problem.reason) for problem in first.problems] == [
        (".hidden.jpg", "its name begins with a dot")
    ]
    assert (second.problems, first.entries, second.entries) == ((), 5, 3)


def test_files_that_are_no_images_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "a/jpg", "a/notes.txt", "a/x.jpg.part")
    (found,) = list_image_files(tmp_path, ["a"])
    assert list(found.names) == []
    assert [Path(problem.file).name for problem in found.problems] == ["jpg", "notes.txt", "x.jpg.part"]
    assert "its name has no extension" in found.problems[0].reason


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list_image_files(tmp_path, ["absent"])


def test_names_of_undecodable_bytes_survive(tmp_path: Path) -> None:
    strange = os.fsdecode(b"caf\xe9 \xff.jpg")
    touch(tmp_path, f"a/{strange}", "a/café.jpg")
    (found,) = list_image_files(tmp_path, ["a"])
    assert set(found.names) == {f"a/{strange}", "a/café.jpg"}
    assert all((tmp_path / name).exists() for name in found.names)


def test_joined_names_are_those_of_the_parts() -> None:
    parts = [["é", "", "abc"], [], ["d"]]
    joined = Names.join([Names(part) for part in parts])
    assert list(joined) == ["é", "", "abc", "d"]
    assert joined[-1] == "d"
    assert joined[1:3] == ["", "abc"]
    assert joined.digest == Names(["é", "", "abc", "d"]).digest != Names(["é", "a", "bc", "d"]).digest
    assert list(Names.join([])) == []


def test_copies_are_told_by_what_they_spoil() -> None:
    train = np.array([1, 2, 3, 4, 5, 1, 0, 6, 4], np.uint64)
    labels = np.array([0, 1, 0, 1, 0, 1, 0, -1, -1])
    parts = Split(*(np.array(index) for index in ([0, 1, 6], [2], [7, 8], [3, 4, 5])))
    found = list(find_copies(train, np.array([6, 3, 9, 0, 5], np.uint64), labels, parts))
    told = [(one.count, one.one, one.other, one.what.split(":")[0]) for one in found]
    assert told == [
        (1, 1, 2, "test images are also trained on with their labels"),
        (1, 4, 4, "test images are also validation images, by which a checkpoint is selected"),
        (1, 0, 7, "test images are also unlabelled training images"),
        (1, 5, 0, "validation images are also trained on with their labels"),
        (1, 3, 8, "validation images are also unlabelled training images"),
        (1, 0, 5, "labelled images are of two classes at once"),
    ]
