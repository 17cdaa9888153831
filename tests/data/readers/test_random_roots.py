"""Random roots: used and left out are all that there is, each label is its image's, and every storage gives the same.

A root is drawn as images and as other entries, written as a folder, packed into tars, and written as lists, as tars by
another hand and as TFRecord files. The test counts what it writes; the readers must come to the same numbers.
"""

import csv
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastmpl.data.classes import normal_name
from fastmpl.data.dataset import UNKNOWN, Arrays
from fastmpl.data.packing import pack as pack_module
from fastmpl.data.packing.pack_shard import PackSettings, pack_shard
from fastmpl.data.readers.streamed_sources import READERS
from tests.accounts import assert_adds_up
from tests.mini_imagenet import example, record

CLASSES = ("cat", "Dog", "a b", "ü", "e\u0301te", "猫", "1", "2", "10", "x.y", "it's", "two  spaces")
LETTERS = st.text("abé 猫.,-_#'\"0()", max_size=6)
SUFFIXES = st.sampled_from((".jpg", ".JPEG", ".png", ".tiff", ".webp", ".Tif"))
OTHERS = ("notes.txt", "noextension", ".hidden.jpg", "._a.jpg", "Thumbs.db", "a.tar", "pipe.jpg", "@eaDir", ".git")
CHECKED = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Drawn(NamedTuple):
    """An image: its part, its class (empty in unlabelled), a folder below that of the class, a name, its bytes."""

    part: str
    word: str
    below: str
    name: str
    content: bytes

    @property
    def path(self) -> str:
        return "/".join(part for part in (self.part, self.word, self.below, self.name) if part)


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (2, 1), (number % 256, number // 256, 7)).save(out, "PNG")
    return out.getvalue()


@st.composite
def drawn_images(draw: st.DrawFn) -> list[Drawn]:
    """Every class has a labelled image; all names and contents differ."""
    words = draw(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=4, unique=True))
    places = [("labelled", word) for word in words]
    places += draw(
        st.lists(st.tuples(st.sampled_from(("labelled", "trusted", "test")), st.sampled_from(words)), max_size=5)
    )
    places += [("unlabelled", "")] * draw(st.integers(0, 4))
    images = []
    for number, (part, word) in enumerate(places):
        name = f"{number}{draw(LETTERS)}{draw(SUFFIXES)}"
        below = draw(st.sampled_from(("", "", "summer", "v1.5/deep")))
        images.append(Drawn(part, word, below, name, png(number)))
    return images


def expected(images: list[Drawn]) -> list[tuple[str, bytes]]:
    """Class and content of each image, whatever its part is called."""
    return sorted((normal_name(image.word), image.content) for image in images)


def read_pairs(arrays: Arrays) -> list[tuple[str, bytes]]:
    pairs = []
    for images, labels in ((arrays.train_images, arrays.train_labels), (arrays.test_images, arrays.test_labels)):
        assert not isinstance(images, np.ndarray)
        for number, label in enumerate(labels):
            word = "" if label == UNKNOWN else arrays.classes[label]
            pairs.append((word, images.read(number).tobytes()))
    return sorted(pairs)


def assert_gives(source: str, root: Path, images: list[Drawn], entries: int) -> None:
    """The reader gives every image with its class, and accounts for all entries."""
    arrays = READERS[source](str(root))
    assert read_pairs(arrays) == expected(images)
    assert_adds_up(arrays, entries)
    tested = sum(image.part == "test" for image in images)
    trusted = sum(image.part == "trusted" for image in images)
    assert (len(arrays.test_labels), 0 if arrays.trusted is None else len(arrays.trusted)) == (tested, trusted)


# -- a folder, with links and all that people and systems leave in one


def write_other(folder: Path, name: str) -> None:
    """One entry that is no image of the user's."""
    path = folder / name
    if name in ("@eaDir", ".git"):
        path.mkdir()
        (path / "inside.jpg").write_bytes(b"x")
    elif name == "pipe.jpg":
        os.mkfifo(path)
    else:
        path.write_bytes(b"x")


def write_folder(root: Path, images: list[Drawn], links: list[bool]) -> None:
    """Files, and links to files that lie elsewhere."""
    elsewhere = root.with_name("elsewhere")
    elsewhere.mkdir()
    for number, (image, link) in enumerate(zip(images, links, strict=True)):
        path = root / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if link:
            (elsewhere / f"{number}").write_bytes(image.content)
            os.symlink(elsewhere / f"{number}", path)
        else:
            path.write_bytes(image.content)


def move_behind_links(root: Path, names: list[str]) -> None:
    """Folders of the root become links to folders elsewhere."""
    for number, name in enumerate(names):
        there = root.with_name("elsewhere") / f"folder {number}"
        (root / name).rename(there)
        os.symlink(there, root / name)


@CHECKED
@given(images=drawn_images(), data=st.data())
def test_a_folder_and_its_pack(images: list[Drawn], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", f"{place}/cache")
        root, out = Path(place) / "root", Path(place) / "packed"
        write_folder(root, images, data.draw(st.lists(st.booleans(), min_size=len(images), max_size=len(images))))
        folders = sorted({str(Path(image.path).parent) for image in images})
        written = {(data.draw(st.sampled_from(folders)), name) for name in data.draw(st.sets(st.sampled_from(OTHERS)))}
        for folder, name in sorted(written):
            write_other(root / folder, name)
        circles = data.draw(st.sets(st.sampled_from(folders), max_size=2))
        for folder in circles:
            os.symlink(root / folder.split("/")[0], root / folder / "circle")
        classes = sorted({"/".join(folder.split("/")[:2]) for folder in folders if "/" in folder})
        move_behind_links(root, data.draw(st.lists(st.sampled_from(classes), unique=True, max_size=3)))
        assert_gives("folder", root, images, len(images) + len(written) + len(circles))

        patch.setattr(pack_module, "_pack_in_order", lambda jobs, processes: ((job, pack_shard(job)) for job in jobs))
        made = pack_module.pack(str(root), out, PackSettings(shard_images=2), tell=lambda line: None)
        assert (made.images, made.left_out) == (len(images), [])
        with_class = sum(image.part != "unlabelled" for image in images)
        assert_gives(
            "webdataset", out, images, len(images) + with_class + 3 * made.shards + 3
        )  # .tar .idx .json; 3 of root


# -- lists, in the forms that people write


def write_list(file: Path, images: list[Drawn], draw: st.DataObject) -> None:
    form = draw.draw(st.sampled_from(("tab", "comma", "space", "class first")))
    rows = [(image.path, image.word) if image.word else (image.path,) for image in images]
    if form == "class first":
        rows = [row[::-1] for row in rows]
    text = io.StringIO()
    if form == "space":
        text.writelines(" ".join(row) + "\n" for row in rows)
    else:
        quoting = csv.QUOTE_MINIMAL if form == "comma" else csv.QUOTE_NONE
        mark = None if form != "comma" else '"'
        separator = "," if form == "comma" else "\t"
        csv.writer(text, delimiter=separator, quoting=quoting, quotechar=mark, lineterminator="\n").writerows(rows)
    lines = text.getvalue().splitlines()
    lines += draw.draw(st.lists(st.sampled_from(lines), max_size=2))  # the same path with the same class
    for extra in draw.draw(st.lists(st.sampled_from(("", "# a comment", "  ")), max_size=3)):
        lines.insert(draw.draw(st.integers(0, len(lines))), extra)
    if draw.draw(st.booleans()) and len(images) > 1:
        header = {"tab": "path\tlabel", "comma": "path,label", "space": "path label", "class first": "label\tpath"}[
            form
        ]
        lines.insert(0, header if images[0].word else "path")
    encoding = draw.draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16")))
    end = draw.draw(st.sampled_from(("\n", "\r\n")))
    file.write_bytes((end.join(lines) + end * draw.draw(st.booleans())).encode(encoding))


def count_lines(file: Path) -> int:
    content = file.read_bytes()
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    return len(list(io.StringIO(text.replace("\r\n", "\n"))))


@CHECKED
@given(images=drawn_images(), data=st.data())
def test_lists_of_the_same_images(images: list[Drawn], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", f"{place}/cache")
        root = Path(place) / "root"
        write_folder(root, images, [False] * len(images))
        entries = 0
        for part in dict.fromkeys(image.part for image in images):
            file = root / f"{part}.{data.draw(st.sampled_from(('txt', 'csv', 'tsv')))}"
            write_list(file, [image for image in images if image.part == part], data)
            entries += 1 + count_lines(file)
        assert_gives("file_list", root, images, entries)


# -- tars of another hand


def tar_members(images: list[Drawn], data: st.DataObject) -> Iterator[tuple[str, bytes | str]]:
    """Names with contents, or with the names that hard links lead to."""
    for image in images:
        stem, _ = os.path.splitext(image.name)
        folder = data.draw(st.sampled_from(("", "./", "set.v1/", "a/b/")))
        files: list[tuple[str, bytes | str]] = [(folder + image.name, image.content)]
        if data.draw(st.booleans()):
            files = [
                (f"store{len(stem)}/.{image.name}", image.content),
                (folder + image.name, f"store{len(stem)}/.{image.name}"),
            ]
        if image.word:
            files.insert(data.draw(st.sampled_from((0, len(files)))), (f"{folder}{stem}.cls", image.word.encode()))
        yield from files
        if data.draw(st.booleans()):
            yield f"{folder}{stem}.json", b"{}"
        if data.draw(st.booleans()):
            yield f"{folder}{image.name}.tar", b"a tar within"


def write_tar(file: Path, images: list[Drawn], data: st.DataObject) -> int:
    """Writes a tar, and gives the number of its members that are no folders."""
    count = 0
    with tarfile.open(file, "w", format=data.draw(st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))) as tar:
        folder = tarfile.TarInfo("set.v1")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in tar_members(images, data):
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.LNKTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            count += 1
    return count


@CHECKED
@given(images=drawn_images(), data=st.data())
def test_tars_of_the_same_images(images: list[Drawn], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", f"{place}/cache")
        root, entries = Path(place) / "root", 0
        for part in dict.fromkeys(image.part for image in images):
            (root / part).mkdir(parents=True)
            own = [image for image in images if image.part == part]
            cut = data.draw(st.integers(0, len(own)))
            for name, some in (("a.tar", own[:cut]), ("b.TAR", own[cut:])):
                if some:
                    entries += 1 + write_tar(root / part / name, some, data)
        assert_gives("webdataset", root, images, entries)
        assert_gives("webdataset", root, images, entries)  # out of the index in the cache


# -- TFRecord


@CHECKED
@given(images=drawn_images(), data=st.data())
def test_tfrecord_files_of_the_same_images(images: list[Drawn], data: st.DataObject) -> None:
    words = list(dict.fromkeys(image.word for image in images if image.word))
    kind = data.draw(st.sampled_from(("text", "synset", "number", "from 1")))
    tensorflow_datasets = data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", f"{place}/cache")
        root, entries = Path(place) / "root", 0
        for part in dict.fromkeys(image.part for image in images):
            (root / part).mkdir(parents=True)
            content, entries = b"", entries + 1
            for image in (image for image in images if image.part == part):
                features: dict[str, bytes | int] = {"image" if tensorflow_datasets else "image/encoded": image.content}
                if image.word and kind in ("text", "synset"):
                    features[f"image/class/{kind}"] = image.word.encode()
                elif image.word:
                    number = words.index(image.word) + (kind == "from 1")
                    features["label" if tensorflow_datasets else "image/class/label"] = number
                content, entries = content + record(example(features)), entries + 1
                if data.draw(st.booleans()):
                    content, entries = content + record(example({"other": 1})), entries + 1
            (root / part / "data-00000-of-00001").write_bytes(content)
        if kind in ("number", "from 1"):
            (root / "classes.txt").write_text(
                "\n".join(words), encoding=data.draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16")))
            )
            entries += 1
        assert_gives("tfrecord", root, images, entries)
