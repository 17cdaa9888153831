"""Windows of encoded pictures, drawn as torchvision draws them but keyed by the image."""

import numpy as np
import pytest
import torch

from fastmpl.data.draws import StreamName
from fastmpl.data.sampler import Sampler
from fastmpl.data.streaming.crops import Crops, draw, windows
from fastmpl.data.streaming.growing_size import Growth

HOW = Crops(224, (0.08, 1.0), (3 / 4, 4 / 3), True, 2, 17, 112)
SIZES = [(375, 500), (500, 333), (64, 64), (1, 1), (30, 2000), (2000, 30)]


def drawn(height: int, width: int, count: int = 20_000) -> np.ndarray:
    u = np.random.default_rng(1).random((count, 22), np.float32)
    return windows(u, np.full(count, height), np.full(count, width), HOW).astype(np.int64)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_window_lies_in_its_picture(height: int, width: int) -> None:
    y, x, h, w = drawn(height, width).T
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (y >= 0).all()
    assert (x >= 0).all()
    assert (y + h <= height).all()
    assert (x + w <= width).all()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (40, 300)])
def test_windows_are_distributed_as_torchvision_s(height: int, width: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    picture = torch.zeros(1, height, width)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(6000)]
    )
    ours = drawn(height, width)
    for column in range(4):
        parts = np.linspace(0.05, 0.95, 7)
        a, b = np.quantile(ours[:, column], parts), np.quantile(theirs[:, column], parts)
        np.testing.assert_allclose(a, b, atol=0.02 * max(height, width))


def test_where_no_size_fits_the_middle_is_taken() -> None:
    y, x, h, w = drawn(30, 2000, 50).T
    assert (h == 30).all()
    assert (y == 0).all()
    middle = (w == 40) & (x == 980)
    assert middle.any()  # 4 / 3 of the height
    assert (w[~middle] < 40).all()


def test_the_two_views_have_draws_of_their_own_that_switching_one_off_leaves_alone() -> None:
    passes = Sampler(np.arange(400), 400, StreamName.UNLABELLED, seed=1)
    rows, side = passes.samples(0), np.full(400, 300)
    weak, strong = draw(passes, rows, side, side, HOW)
    assert (weak.window != strong.crop.window).any(1).mean() > 0.95
    assert 0.4 < (weak.mirror == strong.crop.mirror).mean() < 0.6
    plain = draw(passes, rows, side, side, HOW._replace(operations=0, cut=0, flip=False))
    np.testing.assert_array_equal(plain.weak.window, weak.window)
    np.testing.assert_array_equal(plain.strong.crop.window, strong.crop.window)
    assert not plain.weak.mirror.any()


def test_images_grow_in_strides_and_end_at_their_size() -> None:
    growth = Growth(128, 224, 90)
    sizes = [growth.size(step) for step in range(200)]
    assert sorted(set(sizes)) == [128, 160, 192, 224]
    assert sizes == sorted(sizes)
    assert sizes[0] == 128
    assert sizes[89] == 192
    assert sizes[90] == 224
    assert {Growth(0, 224, 0).size(step) for step in range(3)} == {224}
