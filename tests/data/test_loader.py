"""What a trainer sees: batches that resume bit for bit, that ranks share, and that never show a hidden label."""

import json
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130 to test the loader of images")

from fastmpl.data.batch import Batch
from fastmpl.data.build import Data, build
from fastmpl.data.errors import DataError
from fastmpl.data.prepare import UNKNOWN
from tests.data.batches import assert_equal, concatenate

Make = Callable[..., SimpleNamespace]
SMALL = {"unlabelled": 100, "trusted": 20, "noise": ("pair", 0.4), "batch_trusted": 8}  # an epoch: 4.2, 1.25, 2.5 steps


def batches(data: Data, count: int) -> list[Batch]:
    return [data.train.next() for _ in range(count)]


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        (SMALL, (0, 1, 4, 5, 7, 19)),
        (SMALL | {"rand_augment": (1, 10)}, (7,)),
        ({"source": "two_moons", "labels": 6, "validation": 0, "batch_labelled": 6, "unlabelled": 100}, (4, 7)),
    ],
)
def test_stopping_and_resuming_is_as_not_stopping(
    settings: Make, changes: dict[str, object], stops: tuple[int, ...]
) -> None:
    data = build(settings(**changes), seed=1)
    straight = batches(data, 20)
    for stop in stops:
        before = build(settings(**changes), seed=1)
        batches(before, stop)
        saved = json.loads(json.dumps(before.train.state()))
        after = build(settings(**changes), seed=1)
        after.train.restore(saved)
        for expected, seen in zip(straight[stop:], batches(after, 20 - stop), strict=True):
            assert_equal(seen, expected)


@pytest.mark.parametrize("operations", [0, 2])
def test_two_ranks_batches_are_the_batch_of_one_process(settings: Make, operations: int) -> None:
    section = settings(**SMALL, rand_augment=(operations, 10))
    one, *two = build(section, seed=1), build(section, seed=1, rank=0, world=2), build(section, seed=1, rank=1, world=2)
    for _ in range(6):
        together = concatenate((two[0].train.next(), two[1].train.next()))
        assert_equal(together, one.train.next())


def test_a_run_may_go_on_with_another_number_of_ranks(settings: Make) -> None:
    one = build(settings(**SMALL), seed=1)
    batches(one, 3)
    two = [build(settings(**SMALL), seed=1, rank=r, world=2) for r in range(2)]
    for rank in two:
        rank.train.restore(one.train.state())
    assert_equal(concatenate((two[0].train.next(), two[1].train.next())), one.train.next())


@pytest.mark.parametrize(
    ("seed", "changes", "named"),
    [
        (2, {}, "seed (1 there, 2 here)"),
        (1, {"batch_unlabelled": 48}, "batch_unlabelled (24 there, 48 here)"),
        (1, {"unlabelled": 99}, "unlabelled (100 there, 99 here)"),
        (1, {"noise": ("pair", 0.2)}, "split"),
        (1, {"flip": False}, "flip (True there, False here)"),
        (1, {"source": "two_moons"}, "source (digits there, two_moons here)"),
    ],
)
def test_a_foreign_checkpoint_is_refused_by_name(
    settings: Make, seed: int, changes: dict[str, object], named: str
) -> None:
    saved = build(settings(**SMALL), seed=1).train.state()
    other = build(settings(**(SMALL | changes)), seed=seed)
    with pytest.raises(DataError) as caught:
        other.train.restore(saved)
    assert named in str(caught.value)


@pytest.mark.parametrize("state", [{}, {"step": 3}, {"step": "3", "fingerprint": {}}, {"step": -1, "fingerprint": {}}])
def test_a_checkpoint_without_a_position_is_refused(settings: Make, state: dict[str, object]) -> None:
    with pytest.raises(DataError, match="holds no position"):
        build(settings(), seed=1).train.restore(state)


def test_another_seed_gives_other_batches(settings: Make) -> None:
    first, second = (build(settings(**SMALL), seed=s).train.next() for s in (0, 1))
    assert not torch.equal(first.unlabelled_index, second.unlabelled_index)
    assert not torch.equal(first.labelled, second.labelled)


def test_labelled_and_trusted_rows_carry_the_labels_of_their_images(settings: Make) -> None:
    data = build(settings(**SMALL), seed=1)
    for batch in batches(data, 5):
        assert np.isin(batch.labelled_index, data.split.labelled).all()
        assert np.isin(batch.unlabelled_index, data.split.unlabelled).all()
        moved = batch.targets != data.truth[batch.labelled_index]
        assert torch.equal(batch.targets[moved], (data.truth[batch.labelled_index][moved] + 1) % 10)
        assert batch.trusted_targets is not None
        assert (batch.trusted_targets != UNKNOWN).all()


def test_a_class_loses_its_rate_of_labels_and_no_other_image_has_a_target(settings: Make) -> None:
    data = build(settings(**SMALL | {"labels": 200}), seed=1)
    targets = data._streams.prepared.targets
    labelled, trusted = data.split.labelled, data.split.trusted
    truth = data.truth.numpy()
    moved = targets[labelled] != truth[labelled]
    np.testing.assert_array_equal(np.bincount(truth[labelled], weights=moved), [8] * 10)
    np.testing.assert_array_equal(targets[trusted], truth[trusted])
    assert (np.delete(targets, np.concatenate([labelled, trusted])) == UNKNOWN).all()


def test_there_is_no_trusted_batch_without_trusted_images(settings: Make) -> None:
    batch = build(settings(), seed=0).train.next()
    assert batch.trusted is None
    assert batch.trusted_targets is None
    assert batch.labelled.shape == (16, 3, 8, 8)
    assert batch.weak.shape == (24, 3, 8, 8)


def test_a_loader_without_unlabelled_images_has_the_labelled_ones_of_the_others(settings: Make) -> None:
    both, alone = (build(settings(**SMALL), seed=1, unlabelled=with_them) for with_them in (True, False))
    for whole, part in zip(batches(both, 3), batches(alone, 3), strict=True):
        nothing = {"weak": whole.weak[:0], "strong": whole.strong[:0], "unlabelled_index": whole.unlabelled_index[:0]}
        assert_equal(part, whole._replace(**nothing))
    assert both.train.state() == alone.train.state()  # so that a run of an older version continues


def test_a_loader_without_trusted_images_has_the_other_ones(settings: Make) -> None:
    both, alone = (build(settings(**SMALL), seed=1, trusted=with_them) for with_them in (True, False))
    for whole, part in zip(batches(both, 3), batches(alone, 3), strict=True):
        assert whole.trusted is not None
        assert_equal(part, whole._replace(trusted=None, trusted_targets=None))
    assert both.train.state() == alone.train.state()
    assert alone.trusted_count > 0  # which fine-tuning may use


def test_validation_and_test_are_whole_images_with_true_labels(settings: Make) -> None:
    data = build(settings(**SMALL), seed=1)
    assert data.validation is not None
    again = data.examples(data.split.validation)
    assert torch.equal(data.validation.images, again.images)
    assert torch.equal(data.validation.labels, again.labels)
    assert torch.equal(data.validation.labels, data.truth[data.split.validation])
    assert data.test is not None
    assert data.test.images.shape == (500, *data.image_shape)
    assert (data.labelled_count, data.trusted_count, data.unlabelled_count) == (20, 20, 100)
    assert build(settings(validation=0), seed=1).validation is None


def test_finetuning_streams_the_asked_images_with_their_labels_and_resumes(settings: Make) -> None:
    data = build(settings(**SMALL), seed=1)
    opened = data.finetune("trusted", batch=8)
    seen = [opened.next() for _ in range(4)]
    assert all(np.isin(batch.index, data.split.trusted).all() for batch in seen)
    assert all(torch.equal(batch.targets, data.truth[batch.index]) for batch in seen)
    torch.testing.assert_close(data.finetune("trusted", batch=8, step=3).next(), seen[3], atol=0, rtol=0)


def test_two_moons_are_tested_on_the_points_without_labels(settings: Make) -> None:
    data = build(settings(source="two_moons", labels=6, validation=0, batch_labelled=6), seed=0)
    assert data.image_shape == (2,)
    assert data.test is not None
    assert data.test.labels.shape == (1994,)
    batch = data.train.next()
    torch.testing.assert_close(batch.weak, data.examples(batch.unlabelled_index.numpy()).images, atol=0, rtol=0)
    jitter = torch.cat([b.strong - b.weak for b in batches(data, 200)])
    torch.testing.assert_close(jitter.std(0), torch.full((2,), 0.2), atol=0.01, rtol=0)


def test_with_all_labels_labelled_images_are_also_the_unlabelled_ones(settings: Make) -> None:
    data = build(settings(labels=0), seed=0)
    assert data.labelled_count == data.unlabelled_count == 1247
