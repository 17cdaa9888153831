"""The one rule of class names: unique, printable, compared and mapped by name."""

import numpy as np
import pytest

from fastmpl.data.classes import check_class_names, class_order, closest_name, remarks_on_names, similar_names
from fastmpl.data.errors import DataError


def test_names_come_back_in_their_normal_form() -> None:
    assert check_class_names([" cat", "caf" + "e\u0301"], "the list") == ("cat", "caf\u00e9")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dog", "cat"], "list: two classes are called 'cat'"),
        (["e\u0301", "\u00e9"], "two classes are called"),
        (["cat", "cat "], "two classes are called 'cat'"),
        (["cat", ""], "class 1 has no name"),
        (["cat", "d\nog"], r"'d\\nog' holds the character U\+000A"),
        (["cat", "d\x1b[2J"], r"U\+001B"),
        (["cat", "do\u200bg"], r"U\+200B"),
        (["cat", "\u202egod"], r"U\+202E"),
        (["cat", "\ufeffdog"], r"U\+FEFF"),
        (["cat", "d\u2028og"], r"U\+2028"),
        (["cat", "d\udcffog"], r"U\+DCFF"),
        (["1", "01", "2"], "'1', '01' are one number"),
    ],
)
def test_a_name_that_breaks_the_rule_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check_class_names(names, "the list")
    assert len(str(caught.value).splitlines()) == 1


def test_names_of_other_languages_and_with_spaces_are_names() -> None:
    names = ("Katze 2", "\u732b", "\u043a\u043e\u0442", "T-shirt/top", "\U0001f431", "01")
    assert check_class_names(names, "the list") == names


def test_order_maps_columns_by_name() -> None:
    order = class_order(("dog", "cat", "fox"), ("cat", "dog", "fox"), "the table")
    assert order.dtype == np.int64
    assert np.array([[0.7, 0.2, 0.1]])[:, order].tolist() == [[0.2, 0.7, 0.1]]


def test_order_compares_normal_forms() -> None:
    assert class_order(("cafe\u0301", " b"), ("b", "caf\u00e9"), "the table").tolist() == [1, 0]


def test_other_classes_are_named_on_both_sides() -> None:
    with pytest.raises(DataError, match="the table has other classes than the data: it lacks 'dog' and it adds 'fox'"):
        class_order(("cat", "fox"), ("cat", "dog"), "the table")
    with pytest.raises(DataError, match=r"it lacks '005', '006', '007', '008', '009' and 1 more\."):
        class_order([f"{n:03}" for n in range(5)], [f"{n:03}" for n in range(11)], "the table")
    with pytest.raises(DataError, match="two classes are called 'cat'"):
        class_order(("cat", "cat"), ("cat", "dog"), "the table")


def test_names_that_differ_in_case_are_pointed_out() -> None:
    assert similar_names(["cat", "dog"]) == []
    assert similar_names(["cat", "CAT", "dog"]) == [
        "the classes 'cat', 'CAT' differ only in upper and lower case, and are learned as 2 classes"
    ]


def test_the_nearest_name_is_suggested() -> None:
    assert closest_name("catt", ["cat", "dog"]) == "Did you mean 'cat'?"
    assert closest_name("zebra", ["cat", "dog"]) == "The classes are 'cat', 'dog'."


@pytest.mark.parametrize("name", ["cat dog", "cat, dog", "dog|cat", "['cat', 'dog']", "cat;dog;cat"])
def test_a_name_that_lists_other_classes_is_told(name: str) -> None:
    (found,) = remarks_on_names(["cat", "dog", name, "hot dog", "cat-dog"])
    assert found.startswith("the class ")
    assert repr(name) in found
    assert found.endswith(
        "is a list of other classes: an image has one class here, and each list is learned as a class"
    )


def test_names_with_spaces_are_no_lists() -> None:
    assert remarks_on_names(["polar bear", "brown bear", "cat", "black cat", "a,b", ","]) == []
