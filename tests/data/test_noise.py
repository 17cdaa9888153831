"""Label noise moves as many labels as was asked, where it was asked to, and is keyed by the seed."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fastmpl.data.errors import DataError
from fastmpl.data.noise import add_noise

LABELS = np.repeat(np.arange(4), 100)
INDEX = np.arange(1000, 1400)
IMAGES = np.random.default_rng(0).integers(0, 256, (400, 3, 3, 1)).astype(np.uint8)


def noisy(kind: str, rate: float, seed: int = 0) -> NDArray[np.int64]:
    return add_noise(LABELS, INDEX, IMAGES, 4, kind=kind, rate=rate, seed=seed)


@pytest.mark.parametrize("kind", ["pair", "symmetric", "brightness"])
@pytest.mark.parametrize("rate", [0.0, 0.07, 0.45, 0.5, 0.8, 1.0])
def test_every_class_loses_exactly_its_rate_of_labels(kind: str, rate: float) -> None:
    moved = noisy(kind, rate) != LABELS
    np.testing.assert_array_equal(moved.reshape(4, 100).sum(1), round(100 * rate))


def test_a_rate_that_does_not_divide_is_rounded_up_or_down() -> None:
    seven = np.zeros(7, np.int64)
    counts = {
        int((add_noise(seven, INDEX[:7], IMAGES[:7], 4, kind="pair", rate=0.45, seed=s) > 0).sum()) for s in range(20)
    }
    assert counts == {3, 4}  # 3.15


@pytest.mark.parametrize("kind", ["pair", "brightness"])
def test_pair_noise_moves_a_label_to_the_next_class(kind: str) -> None:
    after = noisy(kind, 0.5)
    moved = after != LABELS
    np.testing.assert_array_equal(after[moved], (LABELS[moved] + 1) % 4)


def test_symmetric_noise_moves_a_label_to_every_other_class_alike() -> None:
    after = noisy("symmetric", 1.0)
    table = np.zeros((4, 4), int)
    np.add.at(table, (LABELS, after), 1)
    assert (np.diag(table) == 0).all()
    assert table[~np.eye(4, dtype=bool)].min() > 18  # 33 expected of each


def test_brighter_images_are_moved_more_often() -> None:
    brightness = IMAGES.reshape(400, -1).mean(1)
    rates = np.mean([noisy("brightness", 0.3, s) != LABELS for s in range(40)], axis=0)
    for c in range(4):
        members = np.arange(100 * c, 100 * c + 100)
        ranked = rates[members[np.argsort(brightness[members])]]
        thirds = ranked[:33].mean(), ranked[33:66].mean(), ranked[66:].mean()
        np.testing.assert_allclose(thirds, [0.1, 0.3, 0.5], atol=0.07)


@pytest.mark.parametrize("kind", ["pair", "symmetric", "brightness"])
def test_noise_is_the_seed_s_alone(kind: str) -> None:
    np.testing.assert_array_equal(noisy(kind, 0.45, 1), noisy(kind, 0.45, 1))
    assert not np.array_equal(noisy(kind, 0.45, 1), noisy(kind, 0.45, 2))


def test_none_leaves_the_labels_alone_and_never_writes_to_them() -> None:
    before = LABELS.copy()
    np.testing.assert_array_equal(noisy("none", 0.45), LABELS)
    noisy("pair", 1.0)
    np.testing.assert_array_equal(LABELS, before)


def test_brightness_of_points_is_refused() -> None:
    with pytest.raises(DataError, match="needs images"):
        add_noise(LABELS, INDEX, np.zeros((400, 2), np.float32), 4, kind="brightness", rate=0.1, seed=0)
