"""The pipeline's pixels: checked against plain numpy made from the same draws."""

import importlib
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastmpl.data.draws import StreamName
from fastmpl.data.errors import DataError
from fastmpl.data.memory import views
from fastmpl.data.memory.unaltered import UnalteredStream, leaves_unaltered
from fastmpl.data.normalise import Normalisation, centre_view, measure
from fastmpl.data.sampler import Sampler

pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130 to test the image pipeline")
from fastmpl.data.memory.pipeline import ImageStream

HOW = views.Augmentation(size=16, flip=True, operations=0, magnitude=0, cut=6, shift=2)
Images = NDArray[np.uint8]


def stream(images: Images, how: views.Augmentation = HOW, batch: int = 24, **options: Any) -> ImageStream:
    sampler = Sampler(np.arange(len(images)), batch, StreamName.UNLABELLED, seed=5)
    return ImageStream(images, sampler, how, measure(images), **{"two_views": True, **options})


def window(image: Images, start: NDArray[np.int32], mirror: int) -> Images:
    """The shifted, flipped image, black outside."""
    shift = HOW.shift
    y, x = start + shift
    padded = np.pad(image, ((shift, shift), (shift, shift), (0, 0)))[y : y + HOW.size, x : x + HOW.size]
    return padded[:, ::-1] if mirror else padded


def expected(images: Images, step: int, batch: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    sampler = Sampler(np.arange(len(images)), batch, StreamName.UNLABELLED, seed=5)
    rows = sampler.samples(step)
    u = sampler.uniform(rows, HOW.columns)
    weak, strong = views.draw_weak(u, HOW), views.draw_strong(u, HOW)
    constants = measure(images)
    both = []
    for drawn in (weak, strong):
        seen = [window(images[i], s, m) for i, s, m in zip(rows.index, drawn.start, drawn.mirror, strict=True)]
        both.append(centre_view(np.stack(seen), HOW.size, constants))
    for row, start, shape in zip(both[1], strong.cut_start.astype(int), strong.cut_shape.astype(int), strict=True):
        row[:, start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]] = 0
    return both[0], both[1]


@pytest.mark.parametrize("channels_last", [False, True])
def test_both_views_are_the_drawn_windows_of_the_indexed_images(coloured: Images, channels_last: bool) -> None:
    opened = stream(coloured, channels_last=channels_last)
    for step in range(4):
        seen, (weak, strong) = opened.next(), expected(coloured, step)
        torch.testing.assert_close(seen.weak, weak, atol=1e-5, rtol=0)
        torch.testing.assert_close(seen.strong, strong, atol=1e-5, rtol=0)
        form = torch.channels_last if channels_last else torch.contiguous_format
        assert seen.weak.is_contiguous(memory_format=form)


def test_the_strong_view_is_not_the_weak_view(coloured: Images) -> None:
    seen = stream(coloured, HOW._replace(cut=0, operations=1, magnitude=10)).next()
    assert seen.strong is not None
    differs = (seen.weak != seen.strong).flatten(1).any(1)
    assert differs.float().mean() > 0.9


def test_without_any_augmentation_both_views_are_the_evaluated_image(coloured: Images) -> None:
    still = views.Augmentation(size=7, flip=False, operations=0, magnitude=0, cut=0, shift=0)
    tiny = np.ascontiguousarray(coloured[:, :7, :7])
    seen = stream(tiny, still).next()
    whole = centre_view(tiny[seen.index.numpy()], 7, measure(tiny))
    torch.testing.assert_close(seen.weak, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.strong, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("stored", "channels"), [(3, 3), (1, 3), (1, 1)])
def test_images_that_nothing_is_done_to_are_bit_for_bit_the_pipeline_s(
    coloured: Images, stored: int, channels: int, channels_last: bool
) -> None:
    how = views.Augmentation(size=16, flip=False, operations=0, magnitude=0, cut=0, shift=0)
    images = np.ascontiguousarray(coloured[..., :stored])
    sampler, constants = Sampler(np.arange(50), 24, StreamName.UNLABELLED, seed=5), measure(images, channels)
    options: dict[str, Any] = {"two_views": True, "step": 1, "channels_last": channels_last}
    form = torch.channels_last if channels_last else torch.contiguous_format
    still = UnalteredStream(images, sampler, constants, **options)
    opened = ImageStream(images, sampler, how, constants, **options)
    assert leaves_unaltered(how, images, two_views=True)
    for _ in range(3):
        mine, theirs = still.next(), opened.next()
        torch.testing.assert_close(mine, theirs, atol=0, rtol=0)
        assert mine.weak.is_contiguous(memory_format=form)


@pytest.mark.parametrize("change", [{"flip": True}, {"shift": 1}, {"size": 8}, {"cut": 2}, {"operations": 1}])
def test_what_changes_a_view_goes_through_the_pipeline(coloured: Images, change: dict[str, int]) -> None:
    how = views.Augmentation(size=16, flip=False, operations=0, magnitude=0, cut=0, shift=0)._replace(**change)
    assert not leaves_unaltered(how, coloured, two_views=True)
    assert leaves_unaltered(how, coloured, two_views=False) == (change.keys() <= {"cut", "operations"})


def test_every_operation_of_rand_augment_is_the_one_drawn(coloured: Images) -> None:
    """Identity, posterise, solarise and inversion-like point operations can be recomputed from the draw alone."""
    how = views.Augmentation(size=7, flip=False, operations=1, magnitude=30, cut=0, shift=0)
    tiny = np.ascontiguousarray(coloured[:, :7, :7])
    sampler = Sampler(np.arange(len(tiny)), 400, StreamName.UNLABELLED, seed=5)
    constants = Normalisation((0.0,) * 3, (1.0,) * 3)
    seen = ImageStream(tiny, sampler, how, constants, two_views=True).next()
    assert seen.strong is not None
    operation = views.draw_strong(sampler.uniform(sampler.samples(0), how.columns), how).operation[0]
    weak, strong = seen.weak.numpy(), seen.strong.numpy()
    unchanged = (weak == strong).all((1, 2, 3))
    assert unchanged[operation == 13].all()  # identity, the suite's last
    assert not unchanged[operation == 4].any()  # rotate, by 30 degrees
    solarised = operation == 10  # threshold 0 at the largest magnitude: every pixel inverted
    np.testing.assert_array_equal(strong[solarised], 255 - weak[solarised])
    posterised = operation == 9  # four bits left
    np.testing.assert_array_equal(strong[posterised], weak[posterised].astype(int) & 0xF0)


def test_a_translation_never_leaves_the_image(coloured: Images) -> None:
    """The library's largest shift is 100 pixels whatever the size, which would leave nothing of a small image."""
    how = views.Augmentation(size=16, flip=False, operations=1, magnitude=30, cut=0, shift=2)
    sampler = Sampler(np.arange(len(coloured)), 200, StreamName.UNLABELLED, seed=5)
    seen = ImageStream(coloured, sampler, how, Normalisation((128.0,) * 3, (1.0,) * 3), two_views=True).next()
    assert seen.strong is not None
    operation = views.draw_strong(sampler.uniform(sampler.samples(0), how.columns), how).operation[0]
    shifted = seen.strong[torch.from_numpy(operation < 2)]
    assert ((shifted != 0).float().mean((1, 2, 3)) > 0.4).all()  # filled with 128, here 0


def test_grey_images_become_three_equal_channels(coloured: Images) -> None:
    grey = np.ascontiguousarray(coloured[..., :1])
    seen, (weak, strong) = stream(grey).next(), expected(grey, 0)
    assert seen.weak.shape == (24, 3, 16, 16)
    torch.testing.assert_close(seen.weak, weak, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.strong, strong, atol=1e-5, rtol=0)


def test_grey_images_may_stay_one_channel(coloured: Images) -> None:
    grey = np.ascontiguousarray(coloured[..., :1])
    sampler = Sampler(np.arange(len(grey)), 24, StreamName.UNLABELLED, seed=5)
    one = ImageStream(grey, sampler, HOW, measure(grey, channels=1), two_views=True).next()
    three = stream(grey).next()
    assert one.weak.shape == (24, 1, 16, 16)
    torch.testing.assert_close(one.weak, three.weak[:, :1], atol=0, rtol=0)
    torch.testing.assert_close(one.strong, three.strong[:, :1], atol=0, rtol=0)


def test_a_grey_network_sees_the_luminance_of_a_picture_in_colour(coloured: Images) -> None:
    unscaled = Normalisation((0.0,), (1.0,))
    grey = np.repeat(coloured[..., :1], 3, axis=-1)  # as a file of a grey picture is read
    torch.testing.assert_close(centre_view(grey, 16, unscaled)[:, 0], torch.from_numpy(grey[..., 0]).float())
    green = np.array([[[[0, 200, 0]]]], np.uint8)
    assert centre_view(green, 1, unscaled).item() == 117  # 0.587 of 200


@pytest.mark.parametrize("size", [8, 24])
def test_a_resized_training_image_is_the_resized_evaluated_one(size: int) -> None:
    smooth = np.indices((16, 16)).sum(0)[None, ..., None] * np.arange(1, 6)[:, None, None, None]
    images = smooth.astype(np.uint8)
    how = views.Augmentation(size=size, flip=False, operations=0, magnitude=0, cut=0, shift=size // 8)
    sampler = Sampler(np.arange(5), 200, StreamName.UNLABELLED, seed=5)
    unscaled = Normalisation((0.0,) * 3, (1.0,) * 3)
    seen = ImageStream(images, sampler, how, unscaled, two_views=False).next()
    unmoved = torch.from_numpy(
        (views.draw_weak(sampler.uniform(sampler.samples(0), how.columns), how).start == 0).all(1)
    )
    whole = centre_view(images[seen.index[unmoved].numpy()], size, unscaled)
    assert unmoved.sum() >= 3
    assert (seen.weak[unmoved] - whole).abs().max() <= 1  # of 255: rounding


def test_training_images_have_mean_zero_and_deviation_one(coloured: Images) -> None:
    normal = centre_view(coloured, 16, measure(coloured))
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_are_the_caller_s_to_keep_though_nothing_copies_them(coloured: Images, channels_last: bool) -> None:
    opened = stream(coloured, channels_last=channels_last)
    kept = [opened.next() for _ in range(8)]
    copies = [batch.weak.clone() for batch in kept]
    for _ in range(12):
        opened.next()
    assert not kept[0].weak.untyped_storage().resizable()  # memory of DALI
    for batch, copy in zip(kept, copies, strict=True):
        torch.testing.assert_close(batch.weak, copy, atol=0, rtol=0)


def test_the_memory_format_changes_no_value(coloured: Images) -> None:
    how = HOW._replace(operations=2, magnitude=10)
    last, first = stream(coloured, how, channels_last=True), stream(coloured, how, channels_last=False)
    for _ in range(3):
        torch.testing.assert_close(last.next(), first.next(), atol=0, rtol=0)


def test_threads_do_not_change_a_pixel(coloured: Images) -> None:
    how = HOW._replace(operations=1, magnitude=10)
    one, two = stream(coloured, how), stream(coloured, how, threads=2)
    for _ in range(3):
        torch.testing.assert_close(one.next(), two.next(), atol=0, rtol=0)


def test_nothing_is_printed_about_aliases_that_no_user_can_change(coloured: Images) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        stream(coloured, HOW._replace(operations=1, magnitude=10)).next()
        warnings.warn("still shown", DeprecationWarning, stacklevel=1)
    assert [str(w.message) for w in shown] == ["still shown"]


def test_a_missing_dali_is_one_sentence_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    for module in ("fastmpl.data.memory.pipeline", "fastmpl.data.dali"):
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(DataError, match=r"^Data: Images are prepared by NVIDIA DALI.*pip install nvidia-dali-cuda130"):
        importlib.import_module("fastmpl.data.memory.pipeline")
