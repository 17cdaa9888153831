"""Encoded images by random access: the same pictures and labels from a folder, lists, tars and TFRecord."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastmpl.data.dataset import UNKNOWN, Arrays
from fastmpl.data.errors import DataError
from fastmpl.data.files.encoded import Subset
from fastmpl.data.readers import shards, streamed_sources
from fastmpl.data.readers.streamed_sources import READERS
from tests import mini_imagenet
from tests.mini_imagenet import CLASSES, Picture, example, field, record, varint

LABELLED, UNLABELLED, TEST = 2, 7, 1
EACH = 8  # images of a shard


def pictures() -> Iterator[Picture]:
    """Small ones: what is in them does not matter here."""
    return mini_imagenet.pictures(LABELLED, UNLABELLED, TEST, size=(24, 16))


def write(source: str, root: Path) -> Path:
    shard = {"each": EACH} if source in ("webdataset", "tfrecord") else {}
    writer: Callable[..., Path] = mini_imagenet.WRITERS[source]
    return writer(root / source, pictures(), **shard)


def held(arrays: Arrays) -> list[tuple[str, bytes]]:
    """Part by part the class and the bytes of each image, in no order."""
    rows = []
    for images, labels in ((arrays.train_images, arrays.train_labels), (arrays.test_images, arrays.test_labels)):
        assert not isinstance(images, np.ndarray)
        assert len(images) == len(labels)
        rows += [
            ("" if label == UNKNOWN else arrays.classes[label], images.read(i).tobytes())
            for i, label in enumerate(labels)
        ]
    return sorted(rows)


@pytest.mark.parametrize("source", READERS)
def test_every_storage_gives_the_pictures_and_labels_that_were_written(source: str, tmp_path: Path) -> None:
    arrays = READERS[source](str(write(source, tmp_path)))
    assert arrays.classes == CLASSES
    assert (len(arrays.train_labels), len(arrays.test_labels)) == (27, 10)
    assert (arrays.train_labels[:20] != UNKNOWN).all()
    assert (arrays.train_labels[20:] == UNKNOWN).all()
    assert held(arrays) == sorted(("" if p.label < 0 else CLASSES[p.label], p.jpeg) for p in pictures())


@pytest.mark.parametrize(("source", "tool"), [("webdataset", "wds2idx"), ("tfrecord", "tfrecord2idx")])
def test_dali_s_index_beside_a_shard_is_a_helper_and_changes_nothing(source: str, tool: str, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130, whose tools write the index")
    root = write(source, tmp_path)
    own = READERS[source](str(root))
    for shard in [path for part in root.iterdir() for path in part.iterdir()]:
        program = [sys.executable, str(Path(sys.executable).parent / tool)]
        subprocess.run([*program, str(shard), str(shard.with_suffix(".idx"))], check=True, capture_output=True)
    indexed = READERS[source](str(root))
    assert held(indexed) == held(own)
    assert list(indexed.names) == list(own.names)
    assert own.inventory is not None
    assert indexed.inventory is not None
    shards = sum(path.suffix == ".idx" for path in root.rglob("*"))
    assert indexed.inventory.helpers == own.inventory.helpers + shards


def test_an_index_is_made_once_and_again_when_a_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scanned = write("webdataset", tmp_path), []
    scan = streamed_sources.scan_tar
    counted = streamed_sources.WEBDATASET._replace(read=lambda path: scanned.append(path.name) or scan(path))
    monkeypatch.setattr(streamed_sources, "WEBDATASET", counted)
    first = READERS["webdataset"](str(root))
    count = len(scanned)
    assert held(READERS["webdataset"](str(root))) == held(first)
    assert len(scanned) == count
    os.utime(root / "labelled" / "00001.tar", ns=(1, 1))
    READERS["webdataset"](str(root))
    assert len(scanned) == count + 3  # of that part, and no other
    (root / "labelled" / "00001.idx").write_text("v9.9 0\n")
    READERS["webdataset"](str(root))
    assert len(scanned) == count + 3  # an index beside a shard is not read


def test_without_a_cache_an_index_is_made_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write("tfrecord", tmp_path)
    monkeypatch.setattr(shards, "cache_folder", lambda: None)
    assert held(READERS["tfrecord"](str(root))) == held(READERS["tfrecord"](str(root)))


def test_classes_that_are_numbers_are_named_by_classes_txt(tmp_path: Path) -> None:
    root = mini_imagenet.write_tars(tmp_path / "tars", pictures(), numbers=True)
    assert READERS["webdataset"](str(root)).classes == tuple(map(str, range(10)))
    (root / "classes.txt").write_text("\n".join(CLASSES))
    arrays = READERS["webdataset"](str(root))
    assert arrays.classes == CLASSES
    assert held(arrays) == sorted(("" if p.label < 0 else CLASSES[p.label], p.jpeg) for p in pictures())


def test_a_list_may_have_spaces_for_tabs_though_its_paths_have_some_too(tmp_path: Path) -> None:
    root = write("file_list", tmp_path)
    tabs = held(READERS["file_list"](str(root)))
    for part in ("labelled", "test"):
        path = root / f"{part}.txt"
        path.write_text(path.read_text().replace("\t", " "))
    assert held(READERS["file_list"](str(root))) == tabs


def test_an_index_of_an_older_shard_is_not_believed(tmp_path: Path) -> None:
    root = write("webdataset", tmp_path)
    own = held(READERS["webdataset"](str(root)))
    (root / "labelled" / "00000.idx").write_text("v1.2 1\njpg 512 8 a.jpg cls 1536 1 a.cls\n")
    (root / "labelled" / "00001.idx").write_text("v1.1 1\njpg 512 99999999 cls 512 8\n")
    assert held(READERS["webdataset"](str(root))) == own


def test_extensions_in_capitals_are_extensions_and_numbers_are_in_their_order(tmp_path: Path) -> None:
    root = mini_imagenet.write_tars(
        tmp_path, iter(Picture("labelled", f"{label}", label, b"picture") for label in (10, 2)), numbers=True
    )
    path = root / "labelled" / "00000.tar"
    path.write_bytes(capitals(path.read_bytes()))
    arrays = READERS["webdataset"](str(root))
    assert arrays.classes == ("2", "10")
    assert list(arrays.names) == ["10.JPG", "2.JPG"]


def test_trusted_images_of_lists_are_set_aside(tmp_path: Path) -> None:
    root = write("file_list", tmp_path)
    lines = (root / "labelled.txt").read_text().splitlines()
    (root / "trusted.txt").write_text("\n".join(lines[:4]))
    (root / "labelled.txt").write_text("\n".join(lines[4:]))
    arrays = READERS["file_list"](str(root))
    assert arrays.trusted is not None
    assert [arrays.names[i] for i in arrays.trusted] == [line.split("\t")[0] for line in lines[:4]]


def capitals(tar: bytes) -> bytes:
    """The same tar whose members' extensions are in capitals."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as there, tarfile.open(fileobj=out, mode="w") as here:
        for member in there:
            content = there.extractfile(member)
            stem, _, extension = member.name.partition(".")
            member.name = f"{stem}.{extension.upper()}"
            here.addfile(member, content)
    return out.getvalue()


def tar_cut(root: Path) -> None:
    path = root / "labelled" / "00001.tar"
    path.write_bytes(path.read_bytes()[:300])


def unknown_class(root: Path) -> None:
    mini_imagenet.write_tars(root, iter([Picture("test", "odd", 3, b"")]))
    path = root / "test" / "00000.tar"
    path.write_bytes(path.read_bytes().replace(CLASSES[3].encode(), CLASSES[3].encode()[:-1] + b"x"))


def no_class(root: Path) -> None:
    mini_imagenet.write_tars(root, iter([Picture("labelled", "odd", -1, b"picture")]))


def one_class(root: Path) -> None:
    lines = (root / "labelled.txt").read_text().splitlines()
    (root / "labelled.txt").write_text(lines[0])


def record_cut(root: Path) -> None:
    path = root / "labelled" / "00001"
    path.write_bytes(path.read_bytes()[:-40])


def no_example(root: Path) -> None:
    (root / "labelled" / "00001").write_bytes(record(b"\xff" * 30))


def gzipped_records(root: Path) -> None:
    path = root / "labelled" / "00001"
    path.write_bytes(gzip.compress(path.read_bytes()))


FAULTS = [
    ("webdataset", tar_cut, r"00001\.tar is no whole, uncompressed tar file"),
    (
        "webdataset",
        unknown_class,
        r"test/00000\.tar: odd\.jpg has the class 'n0144908x', which no labelled image has\. Did you mean 'n01449083'\?",
    ),
    ("webdataset", no_class, r"labelled/00000\.tar: odd\.jpg has no class\. Expected a file KEY\.cls beside KEY\.jpg"),
    ("file_list", one_class, r"has one class \(n01440764\), and a classifier needs two or more"),
    ("tfrecord", record_cut, r"labelled/00001, record \d+: .*cut off or damaged"),
    ("tfrecord", no_example, r"labelled/00001, record 0: "),
    ("tfrecord", gzipped_records, r"labelled/00001, record 0: .* compressed \(gzip\)"),
]


@pytest.mark.parametrize(("source", "fault", "said"), FAULTS)
def test_a_damaged_shard_is_one_sentence_that_names_it(
    source: str, fault: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    root = write(source, tmp_path)
    fault(root)
    with pytest.raises(DataError, match=said):
        READERS[source](str(root))


@pytest.mark.parametrize("source", ["file_list", "webdataset", "tfrecord"])
def test_a_folder_without_labelled_images_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labelled"):
        READERS[source](str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        READERS[source](str(tmp_path / "nowhere"))


def test_integers_of_an_example_are_read_packed_and_one_by_one(tmp_path: Path) -> None:
    def labelled(value: bytes) -> bytes:
        features = {b"image/encoded": field(1, field(1, b"bytes")), b"image/class/label": field(3, value)}
        entries = (field(1, name) + field(2, feature) for name, feature in features.items())
        return field(1, b"".join(field(1, entry) for entry in entries))

    path = tmp_path / "both"
    path.write_bytes(record(labelled(field(1, varint(300)))) + record(labelled(varint(1 << 3) + varint(7))))
    found = streamed_sources.scan_tfrecord(path).entries
    assert [(entry.word, entry.numbered) for entry in found] == [("300", True), ("7", True)]


def test_records_without_an_image_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(record(example({"other": 1})) + record(example({"image/encoded": b"x"})))
    found = streamed_sources.scan_tfrecord(path)
    assert [entry.name for entry in found.entries] == ["00000001"]
    assert [problem.reason for problem in found.problems] == [
        "the record has no feature image/encoded or image; its features are other"
    ]
    assert found.inventory.entries == 2


def test_chosen_images_are_numbered_anew_and_told_from_others(tmp_path: Path) -> None:
    arrays = READERS["tfrecord"](str(write("tfrecord", tmp_path)))
    images = arrays.train_images
    assert not isinstance(images, np.ndarray)
    some = Subset(images, np.array([5, 2]))
    assert list(some.names) == [images.names[5], images.names[2]]
    assert some.read(1).tobytes() == images.read(2).tobytes()
    digests = {images.digest, some.digest, Subset(images, np.array([2, 5])).digest}
    assert len(digests) == 3


def test_brightness_noise_needs_decoded_images(settings: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    from fastmpl.data.prepare import prepare

    root = str(write("tfrecord", tmp_path))
    asked = settings(source="tfrecord", root=root, labels=0, validation=0, noise=("brightness", 0.2))
    with pytest.raises(DataError, match="needs decoded images"):
        prepare(asked, seed=0)
