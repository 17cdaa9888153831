"""Tables of probabilities: columns are known by name, rows by image, numbers by what they sum to."""

import sys
import unicodedata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastmpl.data.errors import DataError
from fastmpl.data.stores.tables import ProbabilityTable, read_table

CLASSES = ("cat", "dog", "hen")
NAMES = ("labelled/cat/1.png", "labelled/dog/1.png", "unlabelled/2.png")
ROWS = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5], [0.25, 0.25, 0.5]])


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "scores.csv").write_text(text, encoding=encoding)
    return folder / "scores.csv"


def csv(rows: Any = ROWS, header: str = "", delimiter: str = ",", names: tuple[str, ...] = NAMES) -> str:
    lines = [delimiter.join([name, *map(str, row)]) for name, row in zip(names, rows, strict=True)]
    return "\n".join([header, *lines] if header else lines) + "\n"


def read(path: Path, classes: tuple[str, ...] = CLASSES, left_out: tuple[str, ...] = ()) -> ProbabilityTable:
    return read_table(path, NAMES, classes, path.parent, left_out)


def values(table: ProbabilityTable) -> np.ndarray[Any, Any]:
    return np.concatenate(list(table.rows(0, len(NAMES))))


def refusal(path: Path, classes: tuple[str, ...] = CLASSES) -> str:
    with pytest.raises(DataError) as refused:
        read(path, classes)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_header_in_another_order_is_followed(tmp_path: Path) -> None:
    given = csv(ROWS[:, [2, 0, 1]], "image,hen,cat,dog")
    table = read(write(tmp_path, given))
    np.testing.assert_allclose(values(table), ROWS, atol=1e-6)
    assert table.remarks == ()


def test_the_image_may_stand_in_any_column_whose_header_is_no_class(tmp_path: Path) -> None:
    lines = ["dog,file,hen,cat", *(f"{row[1]},{name},{row[2]},{row[0]}" for name, row in zip(NAMES, ROWS, strict=True))]
    np.testing.assert_allclose(values(read(write(tmp_path, "\n".join(lines)))), ROWS, atol=1e-6)


@pytest.mark.parametrize("header", ["", "image,0,1,2", "image,p_0,p_1,p_2", "image,class 0,class 1,class 2"])
def test_without_class_names_columns_are_taken_in_the_order_of_the_classes_and_that_is_said(
    header: str, tmp_path: Path
) -> None:
    table = read(write(tmp_path, csv(header=header)))
    np.testing.assert_allclose(values(table), ROWS, atol=1e-6)
    assert [remark.endswith("read in the order cat, dog, hen.") for remark in table.remarks] == [True]


@pytest.mark.parametrize(
    "header", ["image,2,1,0", "image,1,2,3", "image,3,2,1", "image,a,b,c", "image,cat,dog,hound", "image,cat,cat,dog"]
)
def test_a_header_that_names_other_classes_is_refused(header: str, tmp_path: Path) -> None:
    said = refusal(write(tmp_path, csv(header=header)))
    assert "The header of " in said


def test_classes_that_are_numbers_are_names_too(tmp_path: Path) -> None:
    given = csv(ROWS[:, ::-1], "image,2,1,0")
    np.testing.assert_allclose(values(read(write(tmp_path, given), ("0", "1", "2"))), ROWS, atol=1e-6)


def test_a_first_row_of_ones_and_zeros_is_no_header(tmp_path: Path) -> None:
    rows = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    np.testing.assert_array_equal(values(read(write(tmp_path, csv(rows)), ("0", "1", "2"))), rows)


def test_parquet_is_mapped_by_the_names_of_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Column(list[Any]):
        def to_pylist(self) -> list[Any]:
            return list(self)

    columns = [Column(ROWS[:, 1].tolist()), Column(NAMES), Column(ROWS[:, 0].tolist()), Column(ROWS[:, 2].tolist())]
    file = SimpleNamespace(
        schema_arrow=SimpleNamespace(names=["dog", "path", "cat", "hen"]),
        iter_batches=lambda rows: [SimpleNamespace(columns=columns)],
    )
    module = ModuleType("pyarrow.parquet")
    module.ParquetFile = lambda path: file  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)
    (tmp_path / "scores.parquet").touch()
    np.testing.assert_allclose(values(read(tmp_path / "scores.parquet")), ROWS, atol=1e-6)


@pytest.mark.parametrize(
    "rows",
    [
        [[0.33, 0.33, 0.33], [0.01, 0.99, 0.01], [1, 0, 0]],  # two decimals: 0.99 and 1.01
        [[0.3334, 0.3333, 0.3333], [0.5, 0.25, 0.25], [0.999, 0, 0]],
    ],
)
def test_rounded_rows_are_divided_by_their_sums(rows: list[list[float]], tmp_path: Path) -> None:
    found = values(read(write(tmp_path, csv(rows))))
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(found, np.array(rows) / np.sum(rows, axis=1, keepdims=True), atol=1e-6)


def test_the_rounding_that_is_allowed_grows_with_the_number_of_classes(tmp_path: Path) -> None:
    classes, rows = tuple(f"c{n}" for n in range(10)), np.full((3, 10), 0.1)
    rows[:, 0] = 0.06  # 0.96
    assert values(read(write(tmp_path, csv(rows)), classes)).sum(1) == pytest.approx([1, 1, 1])
    rows[:] = [0.05] + [0.09] * 9
    assert "sums to 0.86" in refusal(write(tmp_path, csv(rows)), classes)


def test_percentages_are_recognised_by_their_sum(tmp_path: Path) -> None:
    table = read(write(tmp_path, csv(100 * ROWS, "image,cat,dog,hen")))
    np.testing.assert_allclose(values(table), ROWS, atol=1e-6)
    assert ["read as percentages" in remark for remark in table.remarks] == [True]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([3.2, -1.0, 0.5], "has a negative number"),
        ([0.9, 0.8, 0.7], "sums to 2.4"),
        ([0.5, 0.2, 0.1], "sums to 0.8"),
        ([50, 30, 20], "sums to 100"),
        ([float("nan"), 0, 1], "sums to nan"),
    ],
)
def test_other_numbers_are_refused_by_image(row: list[float], said: str, tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[1] = row
    assert f"the row of image 1 {said}" in refusal(write(tmp_path, csv(rows)))


def test_rows_of_other_images_are_ignored_with_a_count(tmp_path: Path) -> None:
    more = "labelled/dog/broken.jpg,0,0,1\ntest/cat/7.png,1,0,0\ntest/cat/8.png,1,0,0\n"
    table = read(write(tmp_path, csv(header="image,cat,dog,hen") + more), left_out=("labelled/dog/broken.jpg",))
    np.testing.assert_allclose(values(table), ROWS, atol=1e-6)
    first, second = table.remarks
    assert first.startswith("1 rows of") and first.endswith("of files that were left out: they are ignored.")
    assert second.startswith("2 rows of") and "(the first: 'test/cat/7.png')" in second


def test_which_images_need_rows_is_said_and_what_the_file_has_instead(tmp_path: Path) -> None:
    names = ("/home/me/data/labelled/cat/1.png", NAMES[1], NAMES[2])
    said = refusal(write(tmp_path, csv(names=names)))
    assert "has no row for 1 of 3 training images, the first being 'labelled/cat/1.png'" in said
    assert "test images need none. It has 1 rows of other images, the first being '/home/me/data" in said


@pytest.mark.parametrize("mark", ["./", ".\\"])
def test_the_spelling_of_a_path_does_not_matter(mark: str, tmp_path: Path) -> None:
    names = tuple(mark + (name.replace("/", "\\") if mark == ".\\" else name) for name in NAMES)
    np.testing.assert_allclose(values(read(write(tmp_path, csv(names=names)))), ROWS, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_may_be_written_in_either_of_unicode_s_ways(ours: str, theirs: str, tmp_path: Path) -> None:
    there, here = (tuple(unicodedata.normalize(form, f"é/{n}.png") for n in range(3)) for form in (theirs, ours))
    path = write(tmp_path, csv(names=there))
    np.testing.assert_allclose(values(read_table(path, here, CLASSES, tmp_path)), ROWS, atol=1e-6)


@pytest.mark.parametrize(
    ("encoding", "delimiter"), [("utf-8-sig", ","), ("utf-16", "\t"), ("utf-8", ";"), ("utf-16", ",")]
)
def test_what_spreadsheets_save_is_read(encoding: str, delimiter: str, tmp_path: Path) -> None:
    given = csv(ROWS[:, ::-1], delimiter.join(["image", "hen", "dog", "cat"]), delimiter)
    np.testing.assert_allclose(values(read(write(tmp_path, given, encoding))), ROWS, atol=1e-6)


@pytest.mark.parametrize("header", ["image;hen;dog;cat", "image;p_0;p_1;p_2", ""])
def test_decimal_commas_are_read(header: str, tmp_path: Path) -> None:
    order = slice(None, None, -1 if "hen" in header else None)
    head, *lines = csv(ROWS[:, order], header or "image;p_0;p_1;p_2", ";").splitlines()
    given = "\n".join(
        [*([head] if header else []), *(line.replace(".", ",").replace(",png", ".png") for line in lines)]
    )
    assert ";0,5" in given
    np.testing.assert_allclose(values(read(write(tmp_path, given, "utf-8-sig"))), ROWS, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x81,1,0,0\n", "is not text in UTF-8 or UTF-16"),
        (b"", "has no row for 3 of 3 training images"),
        (b"a.png,1,0\n", "line 1 has 3 columns; expected 4"),
        (b"image,cat,dog,hen\nlabelled/cat/1.png,1,zero,0\n", "line 2: could not convert"),
        (b'"' + b"x" * 200_000 + b'",1,0,0\n', "is not a CSV file"),
        (b"labelled/cat/1.png,1,0,0\n./labelled/cat/1.png,1,0,0\n", "has two rows for image"),
        (b"9" * 5000 + b",1,0,0\n", "has no row for 3 of 3"),
    ],
)
def test_what_is_no_table_is_refused_in_one_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_bytes(content)
    assert said in refusal(tmp_path / "scores.csv")
