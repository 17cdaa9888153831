"""What a tar holds: every member is an image, a class, or left out for a reason; what is ambiguous is refused."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from fastmpl.data.errors import DataError
from fastmpl.data.readers.streamed_sources import read_webdataset
from fastmpl.data.readers.tar_index import scan_tar

Content = bytes | tuple[bytes, str]  # a file's bytes, or a kind of link and where it leads


def write(path: Path, members: dict[str, Content] | list[tuple[str, Content]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def images(path: Path) -> dict[str, tuple[bytes, str]]:
    """Name, bytes and class of every image."""
    content = path.read_bytes()
    return {e.name: (content[e.offset : e.offset + e.size], e.word) for e in scan_tar(path).entries}


def reasons(path: Path) -> dict[str, str]:
    found = scan_tar(path)
    used = len(found.entries) + found.inventory.helpers
    assert found.inventory.entries == used + sum(problem.count for problem in found.problems if not problem.used)
    return {problem.file.partition(": ")[2]: problem.reason for problem in found.problems}


def test_a_dot_before_the_extension_hides_no_image(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tar",
        {"a-1.5m.jpg": b"1", "a-1.5m.cls": b"cat", "v1.0/b.rf.0a.JPG": b"2", "v1.0/b.rf.0a.cls": b"dog", "c.jpg": b"3"},
    )
    assert images(path) == {"a-1.5m.jpg": (b"1", "cat"), "v1.0/b.rf.0a.JPG": (b"2", "dog"), "c.jpg": (b"3", "")}
    assert reasons(path) == {}


def test_files_of_one_sample_that_are_not_read_are_told(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tar",
        {"a.jpg": b"1", "a.seg.png": b"mask", "a.cls": b"cat", "a.json": b"{}", "a.inner.tar": b"tar", "b.cls": b"dog"},
    )
    assert images(path) == {"a.jpg": (b"1", "cat")}
    assert reasons(path) == {
        "a.seg.png": "it is another image of a sample",
        "a.json": "it is neither an image nor a .cls",
        "a.inner.tar": "it is an archive within the tar, which is not opened",
        "b.cls": "it is a class without an image",
    }


def test_several_images_with_one_class_all_have_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"a.left.jpg": b"1", "a.right.jpg": b"2", "a.cls": b"cat"})
    assert images(path) == {"a.left.jpg": (b"1", "cat"), "a.right.jpg": (b"2", "cat")}


def test_hidden_members_are_left_out_and_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"./a.jpg": b"1", "./._a.jpg": b"2", ".git/b.jpg": b"3", "@eaDir/c.jpg": b"4"})
    assert images(path) == {"./a.jpg": (b"1", "")}
    assert list(reasons(path)) == ["._a.jpg", ".git/b.jpg", "@eaDir/c.jpg"]


def test_links_within_a_tar_are_followed(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tar",
        {
            "store/a.jpg": b"1",
            "store/a.cls": b"cat",
            "hard.jpg": (tarfile.LNKTYPE, "store/a.jpg"),
            "hard.cls": (tarfile.LNKTYPE, "store/a.cls"),
            "set/soft.jpg": (tarfile.SYMTYPE, "../hard.jpg"),
            "lost.jpg": (tarfile.SYMTYPE, "/etc/passwd"),
            "circle.jpg": (tarfile.SYMTYPE, "circle.jpg"),
            "pipe.jpg": (tarfile.FIFOTYPE, ""),
        },
    )
    assert images(path) == {"store/a.jpg": (b"1", "cat"), "hard.jpg": (b"1", "cat"), "set/soft.jpg": (b"1", "")}
    assert reasons(path) == {
        "lost.jpg": "it is a link to a file that the tar has not",
        "circle.jpg": "it is a link to a file that the tar has not",
        "pipe.jpg": "it is no regular file (a pipe, a socket or a device)",
    }


def joined_by_cat(path: Path) -> Path:
    other = write(path.with_name("b.tar"), {"b.jpg": b"2"})
    path.write_bytes(write(path, {"a.jpg": b"1"}).read_bytes() + other.read_bytes())
    return path


def damaged_within(path: Path) -> Path:
    content = bytearray(write(path, {"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"3"}).read_bytes())
    content[1024 : 1024 + 8] = b"\xff" * 8  # of b's header
    path.write_bytes(content)
    return path


def compressed(path: Path) -> Path:
    path.write_bytes(gzip.compress(write(path, {"a.jpg": b"1"}).read_bytes()))
    return path


REFUSED = {
    "one name twice": ([("a.jpg", b"1"), ("a.jpg", b"2")], r"one key comes twice \(a\.jpg\)"),
    "one key twice, JPEG": (
        [("a.jpg", b"1"), ("a.cls", b"0"), ("b.jpg", b"2"), ("./a.jpg", b"3")],
        r"comes twice \(a\.jpg\)",
    ),
    "one key twice, PNG": (
        [("a.jpg", b"1"), ("a.cls", b"0"), ("b.jpg", b"2"), ("a.png", b"3"), ("a.cls", b"1")],
        r"comes twice \(a\.cls\)",
    ),
    "one key twice, no class": (
        [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.png", b"3")],
        r"comes twice \(a\.jpg and a\.png\)",
    ),
    "a long class": ([("a.jpg", b"1"), ("a.cls", b"x" * 2000)], r"a\.cls has 2000 bytes, and should hold a class"),
    "joined by cat": (joined_by_cat, r"goes on after its end \(byte 1024\)"),
    "damaged within": (damaged_within, r"goes on after its end \(byte 1024\)"),
    "compressed": (compressed, r"is compressed \(gzip\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_for_certain_is_refused(case: str, tmp_path: Path) -> None:
    made, said = REFUSED[case]
    path = tmp_path / "a.tar"
    with pytest.raises(DataError, match=said) as refused:
        scan_tar(made(path) if callable(made) else write(path, made))  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_a_tar_without_an_end_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"a.jpg": b"1", "b.jpg": b"2"})
    path.write_bytes(path.read_bytes()[: 4 * 512])
    assert len(images(path)) == 2
    assert [(problem.used, problem.reason) for problem in scan_tar(path).problems] == [
        (True, "it has no end mark, so it may have been cut off")
    ]


def test_files_beside_the_shards_are_told_and_compressed_tars_refused(tmp_path: Path) -> None:
    labelled = {
        f"{word}.{suffix}": content
        for word in ("cat", "dog")
        for suffix, content in (("jpg", b"1"), ("cls", word.encode()))
    }
    write(tmp_path / "labelled" / "a.tar", labelled)
    write(tmp_path / "labelled" / "more" / "b.tar", labelled)
    (tmp_path / "labelled" / "a.idx").touch()
    (tmp_path / "labelled" / "notes.txt").touch()
    arrays = read_webdataset(str(tmp_path))
    assert {Path(problem.file).name: problem.reason for problem in arrays.problems} == {
        "more": "it is a folder beside the shards, which is not looked into",
        "notes.txt": "it is no shard (*.tar)",
    }
    (tmp_path / "unlabelled").mkdir()
    (tmp_path / "unlabelled" / "a.tar.gz").touch()
    with pytest.raises(DataError, match=r"unlabelled/a\.tar\.gz is compressed"):
        read_webdataset(str(tmp_path))


def test_a_part_without_images_says_what_it_has(tmp_path: Path) -> None:
    write(tmp_path / "labelled" / "a.tar", {"a.json": b"{}"})
    with pytest.raises(
        DataError, match=r"no images in .*/labelled.*; found .*a\.json: it is neither an image nor a \.cls"
    ):
        read_webdataset(str(tmp_path))
