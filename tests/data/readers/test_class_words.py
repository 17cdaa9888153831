"""From words and integers to classes: by name, or by position where classes.txt names them; never by guess."""

from pathlib import Path

import numpy as np
import pytest

from fastmpl.data.errors import DataError
from fastmpl.data.readers.class_words import LabelledParts, PartWords, label_parts


def label(
    root: Path,
    words: list[str],
    names: str | bytes | None = None,
    *,
    numbered: bool = False,
    test: tuple[str, ...] = (),
) -> LabelledParts:
    """What a source with these words in labelled and test makes of them; `names`: what classes.txt holds."""
    if names is not None:
        (root / "classes.txt").write_bytes(names.encode() if isinstance(names, str) else names)

    def part(name: str, own: tuple[str, ...]) -> PartWords:
        flags = np.full(len(own), True) if numbered else None
        return PartWords(own, flags, lambda position: f"{name} image {position}")

    parts = {"labelled": part("labelled", tuple(words)), "trusted": part("trusted", ()), "test": part("test", test)}
    return label_parts(root, parts, "a class")


def classes_of(found: LabelledParts) -> list[str]:
    return [found.classes[number] for number in found.labels["labelled"]]


def test_words_without_a_list_are_the_names_in_a_fixed_order(tmp_path: Path) -> None:
    found = label(tmp_path, ["dog", "cat", "cafe\u0301", "caf\u00e9"], test=("cat",))
    assert found.classes == ("caf\u00e9", "cat", "dog")
    assert classes_of(found) == ["dog", "cat", "caf\u00e9", "caf\u00e9"]
    assert found.labels["test"].tolist() == [1]
    assert label(tmp_path, ["10", "9", "2"]).classes == ("2", "9", "10")


def test_words_that_are_names_of_the_list_take_its_order(tmp_path: Path) -> None:
    found = label(tmp_path, ["cat", "dog"], "dog\ncat\n")
    assert found.classes == ("dog", "cat")
    assert classes_of(found) == ["cat", "dog"]


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
def test_integers_are_positions_whatever_the_names_look_like(tmp_path: Path, mark: bytes) -> None:
    for names in ("1\n2\n0", "1\n2\n5", "cat\ndog\nfox"):
        found = label(tmp_path, ["0", "1", "2"], mark + names.encode(), numbered=True)
        assert classes_of(found) == names.split("\n")


def test_a_list_in_utf16_is_read(tmp_path: Path) -> None:
    assert classes_of(label(tmp_path, ["1", "0"], "cat\ndog".encode("utf-16"))) == ["dog", "cat"]


def test_labels_that_count_from_1_are_moved_and_told(tmp_path: Path) -> None:
    found = label(tmp_path, ["1", "2", "3"], "cat\ndog\nfox\n", numbered=True)
    assert classes_of(found) == ["cat", "dog", "fox"]
    (remark,) = found.remarks
    assert remark.startswith("the labels count from 1, so 1 is 'cat'")


def test_a_background_that_no_image_has_is_left_out_and_told(tmp_path: Path) -> None:
    found = label(tmp_path, ["1", "3", "2"], "background\ncat\ndog\nfox\n", numbered=True)
    assert found.classes == ("cat", "dog", "fox")
    assert classes_of(found) == ["cat", "fox", "dog"]
    assert "'background'" in found.remarks[0]
    kept = label(tmp_path, ["1", "0", "2", "3"], "background\ncat\ndog\nfox\n", numbered=True)
    assert classes_of(kept) == ["cat", "background", "dog", "fox"]


def test_digits_that_could_be_names_or_positions_are_refused_unless_a_pack_says_which(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="could be names or line numbers of it, which are different classes"):
        label(tmp_path, ["0", "1", "2"], "1\n2\n0\n")
    (tmp_path / "plan.json").touch()
    assert classes_of(label(tmp_path, ["0", "1", "2"], "1\n2\n0\n")) == ["0", "1", "2"]


def test_digits_that_mean_the_same_either_way_are_read(tmp_path: Path) -> None:
    assert classes_of(label(tmp_path, ["1", "0", "2"], "0\n1\n2\n")) == ["1", "0", "2"]
    assert classes_of(label(tmp_path, ["5", "10", "1"], "1\n5\n10\n")) == ["5", "10", "1"]  # 10 is no position
    assert classes_of(label(tmp_path, ["0", "1", "2"], "1\n5\n10\n")) == ["1", "5", "10"]  # 0 is no name


REFUSED = [
    (["cat", "", "dog"], None, False, (), r"labelled image 1 has no class\. Expected a class\."),
    (["cat", "cat"], None, False, (), r"has one class \(cat\), and a classifier needs two or more"),
    (
        ["cat", "dog"],
        None,
        False,
        ("fox",),
        r"test image 0 has the class 'fox', which no labelled image has\. The classes",
    ),
    (
        ["cat", "dog"],
        "cat\nfox\n",
        False,
        (),
        r"labelled image 1 has the class 'dog', which classes\.txt does not name",
    ),
    (["1", "01", "2"], None, False, (), "the classes '01', '1' are one number"),
    (
        ["0", "1", "-1"],
        None,
        True,
        (),
        r"labelled image 2 has the label -1, and classes count from 0\. Put images without",
    ),
    (["0", "1", "-1"], "cat\ndog\n", True, (), r"labelled image 2 has the label -1"),
    (
        ["0", "1", "3"],
        "cat\ndog\nfox\n",
        True,
        (),
        r"names 3 classes, .* 0 to 2, and labelled image 2 has the label 3",
    ),
    (
        ["1", "2"],
        "cat\ndog\nfox\n",
        True,
        (),
        r"names 'cat', and no labelled image is of that class.* count from 1, write",
    ),
    (["0", "1"], "cat\n\nfox\n", True, (), r"classes\.txt: line 2 is empty"),
    (["0", "1", "2", "3"], "crane\nhen\nmaillot\ncrane\n", True, (), r"classes\.txt: two classes are called 'crane'"),
    (["0", "1"], "cat\n", True, (), r"classes\.txt names 1 classes, and a classifier needs two or more"),
    (["cat\n1", "dog"], None, False, (), r"'cat\\n1' holds the character U\+000A, which cannot be printed"),
    (["0", "1"], "cat\ndo\u200bg", True, (), r"U\+200B, which cannot be printed"),
    (["0", "1"], b"c\0at\ndog", True, (), r"classes\.txt is no text in UTF-8"),
]


@pytest.mark.parametrize(
    ("words", "names", "numbered", "test", "said"), REFUSED, ids=[case[-1][:40] for case in REFUSED]
)
def test_what_has_no_certain_class_is_one_sentence(
    words: list[str], names: str | bytes | None, numbered: bool, test: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said) as refused:
        label(tmp_path, words, names, numbered=numbered, test=test)
    assert "\n" not in str(refused.value)


def test_integers_and_names_are_not_mixed(tmp_path: Path) -> None:
    mixed = PartWords(("0", "cat"), np.array([True, False]), lambda position: "an image")
    nothing = PartWords((), None, lambda position: "")
    with pytest.raises(DataError, match="some images have the class as a number, others as a name"):
        label_parts(tmp_path, {"labelled": mixed, "trusted": nothing, "test": nothing}, "a class")
