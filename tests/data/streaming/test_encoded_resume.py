"""Encoded images of any storage: exact resumption at any step, on any number of ranks, every image once an epoch."""

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130 to test streams of encoded images")

from fastmpl.data.batch import Batch
from fastmpl.data.build import Data, build
from fastmpl.data.errors import DataError
from tests import mini_imagenet
from tests.data.batches import assert_equal, concatenate

Make = Callable[..., SimpleNamespace]
SOURCES = ("folder", "file_list", "webdataset", "tfrecord")
# 20 labelled images by 6, 39 unlabelled by 12: epochs of 3.3 and 3.25 steps
UNLABELLED, STEPS = 39, 14


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("storages")
    made = list(mini_imagenet.pictures(2, UNLABELLED, 1, size=(40, 30)))
    return {source: str(mini_imagenet.WRITERS[source](root / source, iter(made))) for source in SOURCES}


@pytest.fixture
def opened(settings: Make, roots: dict[str, str]) -> Iterator[Callable[..., Data]]:
    """Opens the data of one rank; its threads end with the test."""
    every: list[Data] = []

    def make(source: str, rank: int = 0, world: int = 1, seed: int = 3, **changes: object) -> Data:
        asked = {"labels": 0, "validation": 0, "image_size": 16, "batch_labelled": 6, "batch_unlabelled": 12,
                 "rand_augment": (1, 10), "decode": "always" if source == "folder" else "auto"}  # fmt: skip
        section = settings(source=source, root=roots[source], **{**asked, **changes})
        every.append(build(section, seed=seed, rank=rank, world=world))
        return every[-1]

    yield make
    for data in every:
        data.train.close()


def steps(data: Data, count: int) -> list[Batch]:
    return [data.train.next() for _ in range(count)]


def resumed(data: Data, state: dict[str, object]) -> Data:
    data.train.restore(json.loads(json.dumps(state)))
    return data


@pytest.mark.parametrize(("source", "world"), [("file_list", 1), ("webdataset", 3)])
def test_resuming_at_ten_random_steps_is_as_not_stopping(opened: Callable[..., Data], source: str, world: int) -> None:
    straight = [steps(opened(source, rank, world), STEPS) for rank in range(world)]
    state = opened(source).train.state()
    for stop in np.random.default_rng(1).permutation(STEPS - 1)[:10].tolist():
        for rank in range(world):
            going, following = resumed(opened(source, rank, world), {**state, "step": stop}), straight[rank][stop:]
            for expected in following[:2]:
                assert_equal(going.train.next(), expected)
            assert going.train.state()["step"] == stop + len(following[:2])
            going.train.close()


def test_the_state_is_that_of_what_was_given_not_of_what_was_made_ahead(opened: Callable[..., Data]) -> None:
    data = opened("tfrecord")
    steps(data, 3)
    following = resumed(opened("tfrecord"), data.train.state()).train.next()
    assert_equal(following, data.train.next())


@pytest.mark.parametrize("source", SOURCES)
def test_another_number_of_ranks_goes_on_with_the_same_images_and_draws(
    opened: Callable[..., Data], source: str
) -> None:
    one = opened(source)
    steps(one, 3)
    three = [resumed(opened(source, rank, 3), one.train.state()) for rank in range(3)]
    for _ in range(2):
        together = tuple(data.train.next() for data in three)
        assert_equal(concatenate(together), one.train.next())


@pytest.mark.parametrize("source", ["folder", "tfrecord"])
def test_over_the_ranks_every_image_of_an_epoch_is_seen_exactly_once(opened: Callable[..., Data], source: str) -> None:
    three = [opened(source, rank, 3) for rank in range(3)]
    seen = torch.cat([torch.cat([data.train.next().unlabelled_index for data in three]) for _ in range(13)])
    epochs = seen.reshape(-1, UNLABELLED)  # 13 x 12 = 4 x 39
    assert len(epochs) == 4
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(three[0].split.unlabelled.tolist())
    assert not torch.equal(epochs[0], epochs[1])


def test_a_checkpoint_of_other_images_or_settings_is_refused_by_name(opened: Callable[..., Data]) -> None:
    state = opened("webdataset").train.state()
    others = {
        "images": opened("tfrecord"),
        "seed": opened("webdataset", seed=4),
        "crop_scale": opened("webdataset", crop_scale=(0.2, 1.0)),
        "start_size": opened("webdataset", start_size=8, grow_steps=4),
        "batch_unlabelled": opened("webdataset", batch_unlabelled=6),
    }
    for named, data in others.items():
        with pytest.raises(DataError, match=named):
            data.train.restore(state)


def test_the_images_draws_do_not_depend_on_the_storage(opened: Callable[..., Data]) -> None:
    tars, records = steps(opened("webdataset"), 2), steps(opened("tfrecord"), 2)
    for left, right in zip(tars, records, strict=True):
        assert_equal(left, right)


def test_labelled_images_carry_their_labels(opened: Callable[..., Data]) -> None:
    data = opened("tfrecord")
    for batch in steps(data, 4):
        assert torch.equal(batch.targets, data.truth[batch.labelled_index])
        assert (data.truth[batch.unlabelled_index] == -1).all()
