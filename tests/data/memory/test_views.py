"""The numbers behind a view stay within their bounds, fill them, and do not depend on each other's switches."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fastmpl.data import draws
from fastmpl.data.memory import views

HOW = views.Augmentation(size=32, flip=True, operations=2, magnitude=10, cut=16, shift=4)


@pytest.fixture
def u() -> NDArray[np.float32]:
    return draws.uniform(draws.key(0), np.arange(4000), HOW.columns)


@pytest.mark.parametrize(("size", "shift"), [(8, 1), (28, 3), (32, 4), (224, 28)])
def test_a_shift_reaches_as_far_as_asked_both_ways_and_no_further(
    u: NDArray[np.float32], size: int, shift: int
) -> None:
    how = HOW._replace(size=size, shift=shift)
    for start in (views.draw_weak(u, how).start, views.draw_strong(u, how).start):
        assert start.shape == (4000, 2)
        assert start.min(0).tolist() == [-shift, -shift]
        assert start.max(0).tolist() == [shift, shift]
        np.testing.assert_allclose(start.mean(0), 0, atol=0.06 * shift)


def test_weak_and_strong_view_are_drawn_independently(u: NDArray[np.float32]) -> None:
    weak, strong = views.draw_weak(u, HOW), views.draw_strong(u, HOW)
    assert abs(np.corrcoef(weak.mirror, strong.mirror)[0, 1]) < 0.05
    assert abs(np.corrcoef(weak.start[:, 0], strong.start[:, 0])[0, 1]) < 0.05


def test_flip_off_never_flips_and_on_flips_half(u: NDArray[np.float32]) -> None:
    assert not views.draw_weak(u, HOW._replace(flip=False)).mirror.any()
    assert not views.draw_strong(u, HOW._replace(flip=False)).mirror.any()
    assert abs(views.draw_weak(u, HOW).mirror.mean() - 0.5) < 0.03
    assert abs(views.draw_strong(u, HOW).mirror.mean() - 0.5) < 0.03


def test_the_cut_square_is_clipped_at_the_border_and_centred_uniformly(u: NDArray[np.float32]) -> None:
    drawn = views.draw_strong(u, HOW)
    end = drawn.cut_start + drawn.cut_shape
    assert drawn.cut_start.min() >= 0
    assert end.max() <= 32
    whole = (drawn.cut_start > 0) & (end < 32)
    assert (drawn.cut_shape[whole] == 16).all()
    assert drawn.cut_shape.min() == 8  # a centre in the corner leaves a half on each axis
    np.testing.assert_allclose(drawn.cut_shape.mean(), 16 - 2 * 8 * 8.5 / 2 / 32, atol=0.2)


def test_operations_and_signs_are_uniform(u: NDArray[np.float32]) -> None:
    drawn = views.draw_strong(u, HOW)
    assert drawn.operation.shape == drawn.sign.shape == (2, 4000)
    counts = np.bincount(drawn.operation.ravel(), minlength=views.OPERATIONS)
    assert len(counts) == views.OPERATIONS
    np.testing.assert_allclose(counts / 8000, 1 / 14, atol=0.015)
    assert abs(drawn.sign.mean() - 0.5) < 0.03


def test_switching_an_augmentation_off_leaves_the_other_draws_alone(u: NDArray[np.float32]) -> None:
    off = HOW._replace(flip=False, operations=0, cut=0)
    np.testing.assert_array_equal(views.draw_strong(u, off).start, views.draw_strong(u, HOW).start)
    np.testing.assert_array_equal(views.draw_weak(u, off).start, views.draw_weak(u, HOW).start)
    one = views.draw_strong(u[:, : HOW._replace(operations=0).columns], HOW._replace(operations=0))
    np.testing.assert_array_equal(one.cut_start, views.draw_strong(u, HOW).cut_start)


def test_settings_are_read_in_pixels() -> None:
    class Settings:
        image_size, flip, rand_augment, cutout, shift, interpolation = 28, False, (2, 9), 0.5, 0.125, "bicubic"

    assert views.augmentation(Settings()) == views.Augmentation(28, False, 2, 9, 14, 3, "bicubic")  # type: ignore[arg-type]
