"""Images that vanish or break while a run is going on: who takes their place, and who does not."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmpl.data.draws import StreamName
from fastmpl.data.errors import DataError
from fastmpl.data.files.encoded import Bytes, Files, Names
from fastmpl.data.sampler import Sampler, Samples
from fastmpl.data.streaming.reading import Pictures, Reader

COUNT, BATCH = 24, 8
CLASSES = np.arange(COUNT) % 3
MEMBERS = np.arange(COUNT)


@pytest.fixture
def images(tmp_path: Path) -> Files:
    """JPEGs whose width is their number plus 10."""
    names = Names(f"image {number}.jpg" for number in range(COUNT))
    for number, name in enumerate(names):
        Image.new("RGB", (10 + number, 12)).save(tmp_path / name)
    return Files(tmp_path, names)


def reader(images: Files, *, classes: bool = False, threads: int = 1) -> Reader:
    return Reader(images, MEMBERS, seed=3, classes=CLASSES if classes else None, threads=threads)


def samples(step: int, rank: int = 0, world: int = 1) -> Samples:
    return Sampler(MEMBERS, BATCH, StreamName.UNLABELLED, 3, rank, world).samples(step)


def widths(found: Pictures) -> list[int]:
    return [picture.width - 10 for picture in found.pictures]


def spoil(images: Files, *numbers: int) -> None:
    """Makes images vanish or break, in every way in turn."""
    for way, number in enumerate(numbers):
        path = images.root / images.names[number]
        content = path.read_bytes()
        if way % 4 == 0:
            path.unlink()
        else:
            path.write_bytes([b"", content[: len(content) // 2], b"no picture"][way % 4 - 1])


def test_whole_images_stand_in_their_own_places(images: Files) -> None:
    found = reader(images).read(samples(0))
    assert widths(found) == samples(0).index.tolist() == found.rows.index.tolist()
    assert found.replaced == ()


def test_an_image_that_vanished_gives_its_place_to_another(images: Files) -> None:
    asked = samples(0)
    spoil(images, int(asked.index[2]))
    found = reader(images).read(asked)
    (replaced,) = found.replaced
    assert (replaced.place, replaced.index, replaced.reason) == (
        2,
        asked.index[2],
        "the file is gone, or a link to nothing",
    )
    assert found.rows.index[2] == replaced.by != asked.index[2]
    assert widths(found) == found.rows.index.tolist()
    assert np.delete(found.rows.index, 2).tolist() == np.delete(asked.index, 2).tolist()


def test_every_way_to_break_is_told_apart(images: Files) -> None:
    spoil(images, 0, 1, 2, 3)
    found = reader(images).read(Samples(MEMBERS, MEMBERS * 0))
    reasons = [replaced.reason for replaced in found.replaced]
    for reason, said in zip(
        reasons, ("gone", "the file is empty", "damaged: ", "not an image of a known"), strict=True
    ):
        assert said in reason


def test_a_labelled_image_is_replaced_by_one_of_its_class(images: Files) -> None:
    lost = [number for number in range(COUNT) if number % 3 == 1][:-1]
    spoil(images, *lost)
    found = reader(images, classes=True).read(Samples(np.array(lost), np.zeros(len(lost), np.int64)))
    assert found.rows.index.tolist() == [COUNT - 2] * len(lost)  # the only one left


def test_any_number_of_ranks_and_threads_replaces_an_image_by_the_same(images: Files) -> None:
    spoil(images, *range(0, COUNT, 2))
    one = reader(images)
    several = reader(images, threads=4)
    for step in range(5):
        whole = one.read(samples(step)).rows.index
        parts = [several.read(samples(step, rank, 2)).rows.index for rank in range(2)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    again = reader(images).read(samples(4)).rows.index  # a run that resumed there
    np.testing.assert_array_equal(again, whole)


def test_an_error_of_the_disk_costs_one_image_too(images: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, honest = samples(0), Files.read

    def failing(files: Files, index: int) -> Bytes:
        if index == asked.index[3]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return honest(files, index)

    monkeypatch.setattr(Files, "read", failing)
    (replaced,) = reader(images).read(asked).replaced
    assert (replaced.place, replaced.reason) == (3, "cannot be read: Input/output error")


def test_what_stands_in_depends_on_the_image_that_is_gone(images: Files) -> None:
    lost = MEMBERS[: COUNT // 2]
    spoil(images, *lost)
    found = reader(images).read(Samples(lost, 0 * lost)).rows.index
    assert len(set(found.tolist())) > 4  # else one picture would be shown in the place of all


def test_a_disk_that_is_gone_is_not_replaced_for_ever(images: Files) -> None:
    spoil(images, *range(COUNT))
    with pytest.raises(DataError, match=r"nor can 20 images drawn in its place: see whether the disk"):
        reader(images).read(samples(0))


def test_an_image_of_a_format_that_dali_lacks_is_decoded_for_it(images: Files) -> None:
    out = io.BytesIO()
    Image.new("CMYK", (10, 12)).save(out, "JPEG")
    (images.root / images.names[0]).write_bytes(out.getvalue())
    (picture,) = reader(images).read(Samples(MEMBERS[:1], MEMBERS[:1])).pictures
    assert picture.content[:2].tobytes() == b"BM"
