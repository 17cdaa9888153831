"""Lists of files in the forms that people write: each is read as it is meant, or refused in a sentence."""

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from fastmpl.data.errors import DataError
from fastmpl.data.files.encoded import Files, Names
from fastmpl.data.readers import file_list
from fastmpl.data.readers.file_list import FileList, read_list
from fastmpl.data.readers.streamed_sources import read_file_list
from fastmpl.errors import ConfigError
from tests.accounts import assert_adds_up

ROWS = [(f"images/{name}{number}.jpg", name, kind) for kind, name in enumerate(("cat", "dog")) for number in range(3)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for path, _, _ in ROWS:
        (tmp_path / path).write_bytes(path.encode())
        (tmp_path / path.replace("/", "/a ")).write_bytes(path.encode())
    return tmp_path


def read(root: Path, text: str | bytes, *, with_class: bool = True) -> FileList:
    file = root / "labelled.txt"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_list(root, file, with_class=with_class)


def lines(line: Callable[[str, str, int], str], head: str = "") -> str:
    return head + "".join(line(*row) + "\n" for row in ROWS)


FORMS = {
    "tabs": lines(lambda path, name, kind: f"{path}\t{name}"),
    "spaces": lines(lambda path, name, kind: f"{path} {name}"),
    "commas": lines(lambda path, name, kind: f"{path},{name}"),
    "semicolons": lines(lambda path, name, kind: f"{path};{name}"),
    "two tabs": lines(lambda path, name, kind: f"{path}\t\t{name}"),
    "class first": lines(lambda path, name, kind: f"{name}\t{path}"),
    "class first, spaces": lines(lambda path, name, kind: f"{name} {path}"),
    "quotes": lines(lambda path, name, kind: f'"{path}" {name}'),
    "quotes, commas": lines(lambda path, name, kind: f'"{path}","{name}"'),
    "header": lines(lambda path, name, kind: f"{path}\t{name}", "path\tlabel\n"),
    "header of any words": lines(lambda path, name, kind: f"{path}\t{name}", "what\twhich\n"),
    "header that names three columns": lines(lambda path, name, kind: f"{kind},{name},{path}", "id,label,filename\n"),
    "comment": lines(lambda path, name, kind: f"{path}\t{name}", "# made by hand\n\n"),
    "carriage returns": lines(lambda path, name, kind: f"{path}\t{name}\r"),
    "backslashes": lines(lambda path, name, kind: path.replace("/", "\\") + f"\t{name}"),
    "without an end": lines(lambda path, name, kind: f"{path}\t{name}").rstrip("\n"),
    "byte-order mark": lines(lambda path, name, kind: f"{path}\t{name}").encode("utf-8-sig"),
    "UTF-16": lines(lambda path, name, kind: f"{path}\t{name}").encode("utf-16"),
    "UTF-16, commas": lines(lambda path, name, kind: f"{path},{name}").encode("utf-16"),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_paths_and_classes(form: str, root: Path) -> None:
    found = read(root, FORMS[form])
    assert list(zip(found.names, found.words, strict=True)) == [(path, name) for path, name, _ in ROWS]
    assert found.inventory.entries == len(ROWS) + sum(problem.count for problem in found.problems)


@pytest.mark.parametrize("separator", ["\t", " ", ",", ";"])
def test_paths_and_classes_may_have_spaces(separator: str, root: Path) -> None:
    found = read(root, lines(lambda path, name, kind: f"{path.replace('/', '/a ')}{separator}golden {name}"))
    assert list(found.names) == [path.replace("/", "/a ") for path, _, _ in ROWS]
    assert found.words == [f"golden {name}" for _, name, _ in ROWS]


def test_absolute_paths_and_those_with_a_variable_are_taken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOT", str(root))
    for start in (str(root), "$ROOT", "${ROOT}"):
        found = read(root, lines(lambda path, name, kind, start=start: f"{start}/{path}\t{name}"))
        assert list(found.names) == [f"{root}/{path}" for path, _, _ in ROWS]


def test_a_list_without_classes_has_whole_lines_for_paths(root: Path) -> None:
    found = read(root, lines(lambda path, name, kind: path.replace("/", "/a ")), with_class=False)
    assert list(found.names) == [path.replace("/", "/a ") for path, _, _ in ROWS]
    found = read(root, FORMS["header"], with_class=False)
    assert list(found.names) == [path for path, _, _ in ROWS]


def test_a_path_that_comes_again_is_used_once_and_told(root: Path) -> None:
    found = read(root, FORMS["tabs"] + "images/../images/cat0.jpg\tcat\n")
    assert len(found.names) == len(found.words) == len(found.lines) == len(ROWS)
    assert [(problem.file[-6:], problem.reason) for problem in found.problems] == [
        ("line 7", "the list has this path before")
    ]


REFUSED = {
    "three columns": (
        lines(lambda path, name, kind: f"{path}\t{name}\t{kind}"),
        r"labelled\.txt has 3 columns: 'images/cat0",
    ),
    "no class in the last": (FORMS["tabs"] + "images/dog9.jpg", r"line 7 has no class: 'images/dog9\.jpg'"),
    "two classes": (
        FORMS["tabs"] + "images/cat1.jpg\tdog\n",
        r"gives 'images/cat1\.jpg' two classes: 'cat' in line 2 and 'dog'",
    ),
    "more columns later": (FORMS["tabs"] + "images/cat3.jpg\tdog\tx\n", r"line 7 has 3 columns, not 2"),
    "an empty label": ("path,label,note\nimages/cat0.jpg,,fine\n", r"line 2 has no class"),
    "elsewhere": (
        lines(lambda path, name, kind: f"pictures/{path}\t{name}"),
        r"line 1: there is no file 'pictures/images/cat0",
    ),
    "UTF-16 without a mark": (
        FORMS["tabs"].encode("utf-16-le"),
        r"labelled\.txt is no text in UTF-8 \(it holds the byte 0\)",
    ),
    "a variable": (
        "$NOWHERE/a.jpg\tcat\n$NOWHERE/b.jpg\tdog\n",
        r"line 1 = '\$NOWHERE/a\.jpg' names the variable NOWHERE",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_list_is_one_sentence(case: str, root: Path) -> None:
    text, said = REFUSED[case]
    with pytest.raises((DataError, ConfigError), match=said) as refused:
        read(root, text)
    assert "\n" not in str(refused.value)


@pytest.mark.timeout(20)
def test_a_pipe_or_a_device_that_a_list_names_is_not_read(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    images = Files(root, Names(["pipe.jpg", "/dev/zero"]))
    for number in range(2):
        with pytest.raises(OSError, match="it is no regular file"):
            images.read(number)


def test_the_lists_of_a_root_have_the_usual_names(root: Path) -> None:
    for name, start in (("train.csv", 0), ("unlabeled.txt", 1), ("VAL.txt", 2)):
        (root / name).write_text("".join(f"{path},{word}\n" for path, word, _ in ROWS[start::3]))
    arrays = read_file_list(str(root))
    assert (len(arrays.train_labels), len(arrays.test_labels)) == (4, 2)
    assert_adds_up(arrays, 3 + 6)
    (root / "test.txt").write_text((root / "VAL.txt").read_text())
    (problem,) = read_file_list(str(root)).problems
    assert problem.file.endswith("VAL.txt")
    assert "test images are read from test.txt" in problem.reason


def test_two_lists_of_one_part_are_no_misspelling_of_another(root: Path) -> None:
    for name in ("labelled.csv", "labelled.txt"):
        (root / name).write_text(FORMS["commas"])
    arrays = read_file_list(str(root))
    assert [problem.reason for problem in arrays.problems] == ["labelled.csv is read as the part labelled"]
    assert_adds_up(arrays, 2 + 6)


def test_a_table_of_another_name_is_named_where_the_list_is_missing(root: Path) -> None:
    (root / "labels.csv").write_text(FORMS["commas"])
    with pytest.raises(DataError, match=r"has no labelled\.txt or train\.txt .*; it holds images, labels\.csv\."):
        read_file_list(str(root))


def test_a_test_image_that_is_trained_on_is_told_when_the_lists_are_read(root: Path) -> None:
    (root / "labelled.txt").write_text("".join(f"{path} {name}\n" for path, name, _ in ROWS))
    (root / "unlabelled.txt").write_text("images/a cat0.jpg\n")
    clean = "images/a dog0.jpg dog\nimages/a cat1.jpg cat\n"
    (root / "test.txt").write_text(clean)
    assert not read_file_list(str(root)).remarks
    (root / "test.txt").write_text(
        clean + "images/../images/cat0.jpg cat\nimages/dog2.jpg dog\nimages/a cat0.jpg cat\n"
    )
    learned, seen = read_file_list(str(root)).remarks
    assert learned.startswith(
        "test images that are also in the list labelled: 2, such as images/cat0.jpg; they are trained"
    )
    assert seen.startswith("test images that are also in the list unlabelled: 1, such as images/a cat0.jpg; ")


@pytest.mark.parametrize("block", [1, 2, 7, 1000])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_lines_are_the_same_however_long_the_blocks_are(block: int, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_list, "_BLOCK", block)
    text = "a\n\nbcd\x0b\n\u2028e" + end
    assert list(file_list._lines(text)) == (text[:-1] if end else text).split("\n")
    assert list(file_list._lines("")) == []
    assert list(file_list._lines("\n")) == [""]


def test_a_long_list_is_read_in_a_few_times_the_memory_of_its_text(root: Path) -> None:
    text = "".join(f"images/n01440764/n01440764_{number}.JPEG\n" for number in range(20_000))
    (root / "images/n01440764").mkdir()
    (root / "images/n01440764/n01440764_0.JPEG").touch()
    tracemalloc.start()
    try:
        read(root, text, with_class=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(text)
