"""The split never overlaps, is class-balanced, and says when images are too few."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmpl.data.errors import DataError
from fastmpl.data.split import Split, split

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 40))


def parts(seed: int = 0, **counts: int) -> Split:
    return split(
        LABELS, "01234", **{"labelled": 20, "trusted": 10, "unlabelled": 0, "validation": 15, **counts}, seed=seed
    )


@given(st.integers(1, 60), st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**63))
def test_sets_never_overlap_and_every_image_is_used(labelled: int, trusted: int, validation: int, seed: int) -> None:
    drawn = parts(seed, labelled=labelled, trusted=trusted, validation=validation)
    np.testing.assert_array_equal(np.sort(np.concatenate(drawn)), np.arange(200))
    assert [len(drawn.labelled), len(drawn.trusted), len(drawn.validation)] == [labelled, trusted, validation]


@given(st.integers(1, 60), st.integers(0, 40))
def test_labelled_trusted_and_validation_are_class_balanced(labelled: int, trusted: int) -> None:
    drawn = parts(labelled=labelled, trusted=trusted)
    for chosen in (drawn.labelled, drawn.trusted, drawn.validation):
        counts = np.bincount(LABELS[chosen], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_validation_and_trusted_stay_while_the_number_of_labels_varies() -> None:
    few, many = parts(labelled=5), parts(labelled=100)
    np.testing.assert_array_equal(few.validation, many.validation)
    np.testing.assert_array_equal(few.trusted, many.trusted)
    assert set(few.labelled) <= set(many.labelled)


def test_unlabelled_images_are_not_drawn_by_class() -> None:
    drawn = parts(unlabelled=40)
    assert len(drawn.unlabelled) == 40
    assert len(np.unique(LABELS[drawn.unlabelled])) == 5
    assert np.ptp(np.bincount(LABELS[drawn.unlabelled])) > 1


def test_with_all_labels_the_unlabelled_images_are_the_labelled_ones() -> None:
    drawn = parts(labelled=0)
    assert len(drawn.labelled) == 200 - 10 - 15
    np.testing.assert_array_equal(drawn.unlabelled, drawn.labelled)


def test_another_seed_labels_other_images_and_the_same_seed_the_same() -> None:
    np.testing.assert_array_equal(parts(3).labelled, parts(3).labelled)
    assert not np.array_equal(parts(3).labelled, parts(4).labelled)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"labelled": 190}, r"data.labels = 190 asks for 38 images of class 0, and 35 are left"),
        ({"trusted": 250}, r"data.trusted = 250 asks for 50 images of class 0, and 37 are left"),
        ({"validation": 1000}, r"data.validation = 1000 asks for 200 images"),
        ({"unlabelled": 156}, r"data.unlabelled = 156, and 155 images are left"),
        ({"labelled": 0, "trusted": 0, "validation": 200}, r"No labelled images are left"),
    ],
)
def test_too_few_images_are_one_clear_sentence(counts: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parts(**counts)
