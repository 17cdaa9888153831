"""Unlabelled images chosen by a teacher's stored confidence: which are kept, how many of a class, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastmpl.data.dataset import digest_of
from fastmpl.data.errors import DataError
from fastmpl.data.prepare import fingerprint, prepare
from fastmpl.data.sources import load
from fastmpl.data.stores.confidence import select_confident
from fastmpl.data.stores.distributions import Probabilities, RowFormat
from fastmpl.data.stores.store import Store, open_store
from fastmpl.data.stores.store_writer import StorePlan, StoreWriter

Make = Callable[..., SimpleNamespace]


def stored(folder: Path, rows: Probabilities, images: str = "some", kept: int = 3) -> Store:
    writer = StoreWriter(folder, StorePlan(len(rows), rows.shape[1], kept, images, "a test", shard_rows=400))
    for shard in writer.missing():
        writer.write(shard, [rows[slice(*writer.plan.range(shard))]])
    writer.finish()
    return open_store(folder)


def surely(classes: np.ndarray, confidence: np.ndarray, count: int = 10) -> Probabilities:
    """Rows with that likeliest class and probability, the rest spread evenly."""
    rows = np.repeat(((1 - confidence) / (count - 1))[:, None], count, axis=1)
    rows[np.arange(len(classes)), classes] = confidence
    return rows.astype(np.float32)


CLASSES = np.array([0, 1, 1, 0, 1, 2, 1])
SURE = np.array([0.9, 0.5, 0.7, 0.3, 0.7, 0.2, 0.8])


@pytest.mark.parametrize("kept", [1, 3, 10])
def test_the_likeliest_class_and_its_probability_are_read_from_a_row_however_it_is_stored(kept: int) -> None:
    form = RowFormat(10, kept)
    number, sure = form.top(form.pack(surely(CLASSES, SURE)))
    np.testing.assert_array_equal(number, CLASSES)
    np.testing.assert_allclose(sure, SURE, rtol=2**-11)


def test_only_images_that_are_sure_enough_are_kept_in_their_order(tmp_path: Path) -> None:
    store = stored(tmp_path, surely(CLASSES, SURE))
    drawn = np.array([6, 5, 4, 3, 1, 0])
    assert select_confident(store, drawn, minimum=0.0, per_class=0).tolist() == drawn.tolist()
    assert select_confident(store, drawn, minimum=0.5, per_class=0).tolist() == [6, 4, 1, 0]
    assert select_confident(store, drawn, minimum=0.7, per_class=0).tolist() == [6, 4, 0]
    assert select_confident(store, drawn, minimum=0.9, per_class=0).tolist() == [0]  # which is stored as 0.8999


def test_of_each_likeliest_class_the_surest_are_kept_and_the_first_of_equals(tmp_path: Path) -> None:
    store = stored(tmp_path, surely(CLASSES, SURE))
    drawn = np.array([4, 2, 6, 1, 5, 3, 0])
    assert select_confident(store, drawn, minimum=0.0, per_class=1).tolist() == [6, 5, 0]
    assert select_confident(store, drawn, minimum=0.0, per_class=2).tolist() == [2, 6, 5, 3, 0]
    assert select_confident(store, drawn, minimum=0.25, per_class=2).tolist() == [2, 6, 3, 0]


def test_a_filter_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    store = stored(tmp_path, surely(CLASSES, SURE))
    with pytest.raises(DataError, match=r"leaves none of 7 unlabelled images: the most confident has 0\.900"):
        select_confident(store, np.arange(7), minimum=0.95, per_class=5)


@pytest.fixture
def digits(settings: Make, tmp_path: Path) -> tuple[Make, np.ndarray]:
    """Settings of digits with a store of random confidences, and these confidences."""
    arrays = load(settings())
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.15, 1, len(arrays.train_labels))
    rows = surely(rng.integers(0, 10, len(sure)), sure)
    folder = tmp_path / "store"
    stored(folder, rows, images=digest_of(arrays.train_images))
    return lambda **changes: settings(**{"filter_store": str(folder)} | changes), sure


def test_a_filter_touches_the_unlabelled_images_alone(digits: tuple[Make, np.ndarray]) -> None:
    make, sure = digits
    plain, filtered = prepare(make(), 1).split, prepare(make(minimum_confidence=0.5), 1).split
    for part in ("labelled", "trusted", "validation"):
        np.testing.assert_array_equal(getattr(plain, part), getattr(filtered, part))
    np.testing.assert_array_equal(filtered.unlabelled, [i for i in plain.unlabelled if sure[i] >= 0.5])


def test_counting_comes_after_filtering(digits: tuple[Make, np.ndarray]) -> None:
    make, sure = digits
    some = prepare(make(minimum_confidence=0.5, unlabelled=100), 1).split.unlabelled
    assert len(some) == 100
    assert (sure[some] > 0.499).all()
    few = prepare(make(per_class=3), 1).split.unlabelled
    assert len(few) == 30
    with pytest.raises(DataError, match="unlabelled = 100, and 30 images are left"):
        prepare(make(per_class=3, unlabelled=100), 1)


def test_a_filter_is_part_of_what_a_checkpoint_must_agree_with(digits: tuple[Make, np.ndarray]) -> None:
    make, _ = digits
    prints = []
    for changes in ({}, {"minimum_confidence": 0.5}, {"minimum_confidence": 0.6}, {"per_class": 3}):
        made = make(**changes)
        prints.append(fingerprint(prepare(made, 1), made, 1))
    assert len({str(print) for print in prints}) == 4
    assert prints[1]["minimum_confidence"] == 0.5


def test_a_filter_of_other_images_is_refused(settings: Make, tmp_path: Path) -> None:
    stored(tmp_path, surely(CLASSES, SURE), images="others")
    with pytest.raises(DataError, match=r"data\.filter_store = .* was made for other images"):
        prepare(settings(filter_store=str(tmp_path), per_class=3), 0)
