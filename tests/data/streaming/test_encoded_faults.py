"""A stream of encoded images whose files vanish, break, or turn out to be what DALI refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130 to test the stream of encoded images")

from fastmpl.data.draws import StreamName
from fastmpl.data.errors import DataError
from fastmpl.data.files import jpeg
from fastmpl.data.files.encoded import Files, Names
from fastmpl.data.normalise import Normalisation
from fastmpl.data.sampler import Sampler
from fastmpl.data.streaming.crops import Crops
from fastmpl.data.streaming.encoded_pipeline import EncodedStream, Machine
from fastmpl.data.streaming.reading import Reader
from fastmpl.data.view_stream import Views
from tests import mini_imagenet

COUNT, BATCH, SEED = 12, 4, 5
HOW = Crops(16, (0.2, 1.0), (0.75, 4 / 3), True, 0, 0, 4)
PLAIN = Normalisation((110.0,) * 3, (60.0,) * 3)


@pytest.fixture
def images(tmp_path: Path) -> Files:
    names = Names(f"{number}.jpg" for number in range(COUNT))
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(mini_imagenet.jpeg(number % 10, 0, number, (60, 44)))
    return Files(tmp_path, names)


def stream(images: Files, step: int = 0, rank: int = 0, world: int = 1) -> EncodedStream:
    members = np.arange(COUNT)
    sampler = Sampler(members, BATCH, StreamName.UNLABELLED, SEED, rank, world)
    return EncodedStream(Reader(images, members, SEED), sampler, HOW, PLAIN, Machine(), two_views=True, step=step)


def taken(of: EncodedStream, steps: int) -> list[Views]:
    return [of.next() for _ in range(steps)]


def assert_equal(left: list[Views], right: list[Views]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a[:3], b[:3], atol=0, rtol=0)


def truncate(images: Files, number: int) -> None:
    path = images.root / images.names[number]
    path.write_bytes(path.read_bytes()[:700])


def test_every_kind_of_bad_file_is_replaced_on_any_number_of_ranks_and_when_resumed(images: Files) -> None:
    (images.root / images.names[2]).unlink()
    truncate(images, 7)
    (images.root / images.names[8]).write_bytes(b"")
    whole = taken(stream(images), 6)
    lost = [replaced.index for views in whole for replaced in views.replaced]
    assert sorted(lost) == sorted([2, 7, 8] * 2)  # two epochs
    assert not {2, 7, 8} & {int(i) for views in whole for i in views.index}
    parts = [taken(stream(images, rank=rank, world=2), 6) for rank in range(2)]
    joined = [
        Views(*(torch.cat([a, b]) for a, b in zip(x[:3], y[:3], strict=True))) for x, y in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)
    assert_equal(taken(stream(images, step=4), 2), whole[4:])


def test_an_image_that_vanishes_while_training_leaves_the_others_as_they_were(images: Files) -> None:
    undisturbed, disturbed = stream(images), stream(images)
    assert_equal(taken(undisturbed, 2), taken(disturbed, 2))
    (images.root / images.names[3]).unlink()
    before, after = taken(undisturbed, 6), taken(disturbed, 6)
    for left, right in zip(before, after, strict=True):
        same = left.index == right.index
        torch.testing.assert_close(left.weak[same], right.weak[same], atol=0, rtol=0)


@pytest.mark.parametrize("place", range(BATCH))
def test_a_picture_that_ends_the_pipeline_is_found_and_replaced(
    images: Files, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = int(Sampler(np.arange(COUNT), BATCH, StreamName.UNLABELLED, SEED).samples(1).index[place])
    truncate(images, bad)
    expected = taken(stream(images), 6)
    monkeypatch.setattr(jpeg, "read_header", lambda content: jpeg.JpegHeader(44, 60, 3))  # sees no damage
    found = taken(stream(images), 6)
    assert [views.index.tolist() for views in found] == [views.index.tolist() for views in expected]
    assert [replaced.index for views in found for replaced in views.replaced] == [bad, bad]


def test_a_disk_that_is_gone_ends_the_stream_in_one_sentence(images: Files) -> None:
    for name in images.names:
        (images.root / name).unlink()
    with pytest.raises(DataError, match="see whether the disk"):
        stream(images).next()
