"""A folder packed into tars: the same pictures in the same order, whole or not at all, and made only once."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmpl.cli import main
from fastmpl.data.build import build
from fastmpl.data.dataset import Arrays
from fastmpl.data.errors import DataError
from fastmpl.data.packing import pack as pack_module
from fastmpl.data.packing.pack import MANIFEST, Packed, pack, verify
from fastmpl.data.packing.pack_shard import PackSettings
from fastmpl.data.readers.streamed_sources import read_files, read_webdataset
from tests import mini_imagenet
from tests.pictures import BAD, DECODED_BAD, make, spoil

Make = Callable[..., SimpleNamespace]
SMALL = PackSettings(shard_images=7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty JPEGs in three parts."""
    images = mini_imagenet.pictures(labelled=2, unlabelled=10, test=1, size=(50, 38))
    return mini_imagenet.write_folder(tmp_path / "folder", images)


def packed(folder: Path, out: Path, how: PackSettings = SMALL, processes: int = 2) -> Packed:
    return pack(str(folder), out, how, processes=processes, tell=lambda line: None)


def contents(arrays: Arrays) -> list[list[bytes]]:
    both = (arrays.train_images, arrays.test_images)
    return [[images.read(i).tobytes() for i in range(len(images))] for images in both]  # type: ignore[union-attr]


def everything(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_tars_hold_every_picture_in_the_folders_order(folder: Path, tmp_path: Path) -> None:
    made = packed(folder, tmp_path / "out")
    assert (made.images, made.shards, made.left_out) == (40, 3 + 2 + 2, [])
    there, here = read_files(str(folder)), read_webdataset(str(tmp_path / "out"))
    assert contents(there) == contents(here)
    assert there.classes == here.classes
    np.testing.assert_array_equal(there.train_labels, here.train_labels)
    np.testing.assert_array_equal(there.test_labels, here.test_labels)


def test_an_index_says_what_the_tar_says(folder: Path, tmp_path: Path) -> None:
    packed(folder, tmp_path / "out")
    with_index = contents(read_webdataset(str(tmp_path / "out")))
    for index in (tmp_path / "out").rglob("*.idx"):
        index.unlink()
    assert contents(read_webdataset(str(tmp_path / "out"))) == with_index


def test_classes_that_are_numbers_keep_their_order(folder: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((folder / "labelled").iterdir())):
        path.rename(folder / "labelled" / str(number + 5))
        (folder / "test" / path.name).rename(folder / "test" / str(number + 5))
    packed(folder, tmp_path / "out")
    there, here = read_files(str(folder)), read_webdataset(str(tmp_path / "out"))
    assert there.classes[:3] == ("10", "11", "12")
    assert here.classes == there.classes
    np.testing.assert_array_equal(there.train_labels, here.train_labels)


def test_training_from_tars_sees_what_training_from_the_folder_sees(
    folder: Path, tmp_path: Path, settings: Make
) -> None:
    packed(folder, tmp_path / "out")
    common = {"labels": 0, "validation": 0, "image_size": 16, "batch_labelled": 6, "batch_unlabelled": 4}
    sources = [{"source": "folder", "root": str(folder)}, {"source": "webdataset", "root": str(tmp_path / "out")}]
    loaders = [build(settings(decode="always", **common, **source), seed=4).train for source in sources]
    for _ in range(5):
        left, right = (loader.next() for loader in loaders)
        for a, b in zip(left, right, strict=True):
            assert (a is None and b is None) or (a is not None and b is not None and a.equal(b))
    for loader in loaders:
        loader.close()


def test_a_sample_s_name_is_its_number_and_what_every_reader_of_tars_takes_whole(folder: Path, tmp_path: Path) -> None:
    first, *_, last = sorted((folder / "unlabelled").iterdir())
    first.rename(first.with_name("a picture.of mine é.JPEG"))
    last.rename(last.with_name("x" * 90 + ".JPEG"))
    packed(folder, tmp_path / "out")
    names = []
    for path in sorted((tmp_path / "out/unlabelled").glob("*.tar")):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert [name[:9] for name in names] == [f"{20 + number:08d}-" for number in range(10)]
    assert names[0] == "00000020-a_picture_of_mine_.jpeg"
    assert names[-1] == f"00000029-{'x' * 60}.jpeg"


def test_large_pictures_are_made_smaller_by_their_longer_side(folder: Path, tmp_path: Path) -> None:
    packed(folder, tmp_path / "out", SMALL._replace(size=40))
    training, _ = contents(read_webdataset(str(tmp_path / "out")))
    assert {Image.open(io.BytesIO(content)).size for content in training} == {(40, 30)}
    again = packed(folder, tmp_path / "same", SMALL._replace(size=50))
    assert again.images == 40
    assert contents(read_webdataset(str(tmp_path / "same"))) == contents(read_files(str(folder)))


def test_the_same_folder_is_packed_into_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    packed(folder, tmp_path / "one", SMALL._replace(size=40), processes=1)
    packed(folder, tmp_path / "two", SMALL._replace(size=40), processes=2)
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


def test_bad_files_of_every_kind_are_left_out_and_named(tmp_path: Path) -> None:
    root = make(tmp_path / "pictures", labelled=13, unlabelled=4, test=2)
    spoil(root / "labelled" / "red", np.random.default_rng(0))
    made = packed(root, tmp_path / "out")
    opened = {name: reason for name, reason in BAD.items() if name in DECODED_BAD}
    assert {Path(one["file"]).name for one in made.left_out} == set(opened)
    for one in made.left_out:
        assert opened[Path(one["file"]).name] in one["reason"]
    here = read_webdataset(str(tmp_path / "out"))
    assert len(here.train_labels) == 3 * 13 + 3 * 4
    assert "<script>alert(1)" in here.classes


# -- interrupted, altered, another's


def test_an_interrupted_pack_goes_on_with_what_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(folder, tmp_path / "whole")
    out = tmp_path / "out"
    honest = pack_module._pack_in_order

    def interrupted(jobs: list[Any], processes: int) -> Any:
        yield from honest(jobs[:3], processes)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "_pack_in_order", interrupted)
        with pytest.raises(KeyboardInterrupt):
            packed(folder, out)
    assert not (out / MANIFEST).exists()
    (out / "labelled/labelled-000001.tar.99.tmp").write_bytes(b"of a process that was killed")
    told: list[str] = []
    pack(str(folder), out, SMALL, processes=1, tell=told.append)
    assert len(told) == 4
    assert everything(out) == everything(tmp_path / "whole")


def test_every_tar_is_held_to_its_checksum(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    packed(folder, out)
    assert list(verify(out)) == []
    shard = out / "unlabelled/unlabelled-000000.tar"
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    (out / "test/test-000001.tar").unlink()
    assert [said.split()[0].rpartition("/")[2] for said in verify(out)] == ["unlabelled-000000.tar", "test-000001.tar"]
    assert main(["pack", str(folder), str(out), "--verify"]) == 3
    assert "was altered since it was written" in capsys.readouterr().err
    shard.unlink()
    packed(folder, out)
    assert list(verify(out)) == []


def test_a_folder_that_holds_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(DataError, match="holds other files already"):
        packed(folder, tmp_path / "out")
    packed(folder, tmp_path / "pack")
    with pytest.raises(DataError, match="holds a pack with another size: name another folder"):
        packed(folder, tmp_path / "pack", SMALL._replace(size=40))
    next((folder / "unlabelled").iterdir()).unlink()
    with pytest.raises(DataError, match="holds a pack with another images"):
        packed(folder, tmp_path / "pack")


def test_the_command_says_what_it_wrote(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(folder), str(tmp_path / "out"), "--shard-images", "100", "--jobs", "1"]) == 0
    assert "40 pictures in 3 tars" in capsys.readouterr().out
    shards = json.loads((tmp_path / "out" / MANIFEST).read_text())["shards"]
    assert [shard["images"] for shard in shards] == [20, 10, 10]
    with tarfile.open(tmp_path / "out" / shards[0]["file"]) as tar:
        assert tar.getnames()[:2] == ["00000000-n01440764_000000.jpeg", "00000000-n01440764_000000.cls"]
