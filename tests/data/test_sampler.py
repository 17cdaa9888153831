"""The order of images is a pure function of the step, without gaps, and shared by any number of ranks."""

import numpy as np
import pytest

from fastmpl.data.draws import StreamName
from fastmpl.data.errors import DataError
from fastmpl.data.sampler import Sampler

MEMBERS = np.arange(100, 130)


def sampler(
    batch: int = 8, seed: int = 0, rank: int = 0, world: int = 1, stream: StreamName = StreamName.UNLABELLED
) -> Sampler:
    return Sampler(MEMBERS, batch, stream, seed, rank, world)


def test_every_epoch_visits_every_image_once_in_another_order() -> None:
    seen = np.concatenate([sampler().samples(s).index for s in range(15)])  # 120 positions: 4 epochs of 30
    epochs = seen.reshape(4, 30)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(MEMBERS, (4, 1)))
    assert len({tuple(e) for e in epochs}) == 4


def test_a_batch_larger_than_the_set_passes_through_it_several_times() -> None:
    rows = Sampler(np.arange(3), 8, StreamName.LABELLED, 0).samples(0)
    np.testing.assert_array_equal(np.bincount(rows.index[:6]), [2, 2, 2])
    np.testing.assert_array_equal(rows.epoch, [0, 0, 0, 1, 1, 1, 2, 2])


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_rows_one_after_another_are_the_rows_of_one_process(world: int) -> None:
    ranks = [sampler(rank=r, world=world) for r in range(world)]
    for step in range(9):
        together = np.concatenate([o.samples(step).index for o in ranks])
        np.testing.assert_array_equal(together, sampler().samples(step).index)


def test_steps_may_be_asked_for_in_any_order() -> None:
    there_and_back, fresh = sampler(), [sampler().samples(s).index for s in range(20)]
    for step in (19, 3, 11, 3, 0):
        np.testing.assert_array_equal(there_and_back.samples(step).index, fresh[step])


def test_a_draw_belongs_to_the_image_and_its_epoch_not_to_its_place() -> None:
    small, large = sampler(batch=6), sampler(batch=10)
    by_image = {}
    for step in range(10):
        rows = small.samples(step)
        by_image.update(zip(zip(rows.index, rows.epoch, strict=True), small.uniform(rows, 3), strict=True))
    for step in range(6):
        rows = large.samples(step)
        for image, u in zip(zip(rows.index, rows.epoch, strict=True), large.uniform(rows, 3), strict=True):
            np.testing.assert_array_equal(u, by_image[image])
    assert len({tuple(u) for u in by_image.values()}) == 60  # 30 images, 2 epochs


def test_another_seed_or_stream_gives_another_order() -> None:
    first = [sampler().samples(0), sampler(seed=1).samples(0), sampler(stream=StreamName.LABELLED).samples(0)]
    assert len({tuple(r.index) for r in first}) == 3


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(DataError, match=r"8 unlabelled images cannot be shared by 3 ranks: use a multiple of 3"):
        sampler(world=3)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(DataError, match="no trusted images"):
        Sampler(MEMBERS[:0], 8, StreamName.TRUSTED, 0)
