"""Lists the images in a WebDataset tar from its headers, with an account of all its members.

Files of one sample have one name up to the first dot of the file's name: 000012.jpg and 000012.cls. `cls` holds the class,
by name or by number. Where that leaves a sample no image (`a-1.5m.jpg`), the last dot ends the name. A link, hard or
symbolic, stands for the file that it leads to within the tar. A compressed tar has no places to read at, and is refused.
"""

import os
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.decode import SUFFIXES
from fastmpl.data.files.listing import why_hidden
from fastmpl.data.files.text import decode_text
from fastmpl.data.inventory import Inventory, Problem, fold_problems
from fastmpl.data.readers.shards import Entry, ShardContent
from fastmpl.untrusted import NO_FILE

CLASS: Final = "cls"
COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONGEST_WORD: Final = 1024  # bytes of a class's name
_LINKS: Final = 8  # links that lead to links


class Member(NamedTuple):
    """A file in a tar: its name without `.` and `..`, where its content is, and its name as it stands in the tar.

    `run`: the number of the run of files with one key that it is in.
    """

    name: str
    offset: int
    size: int
    stored: str
    run: int = 0

    @property
    def key(self) -> str:
        """The name up to the first dot."""
        folder, file = posixpath.split(self.name)
        return posixpath.join(folder, file.partition(".")[0])

    @property
    def extension(self) -> str:
        """All that follows the first dot."""
        return posixpath.basename(self.name).partition(".")[2].lower()

    @property
    def stem(self) -> str:
        """The name up to the last dot."""
        return posixpath.splitext(self.name)[0]

    @property
    def kind(self) -> str:
        """`image`, `class` or nothing, by what follows the last dot."""
        suffix = posixpath.splitext(self.name)[1].lower()
        return "image" if suffix in SUFFIXES else "class" if suffix == f".{CLASS}" else ""


class _Sample(NamedTuple):
    """An image and its class."""

    image: Member
    word: Member | None


class _Members(NamedTuple):
    """Files and links to files that are the user's own, other members by reason, and the number of all but folders."""

    files: list[Member]
    problems: list[Problem]
    total: int


def _refuse_compressed(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(8)
    form = next((form for magic, form in COMPRESSED.items() if start.startswith(magic)), "")
    if form:
        raise DataError(
            f"{printable(path)} is compressed ({form}), and a compressed tar has no places to read at. Decompress it: "
            "images are compressed already."
        )


def _check_end(path: Path, end: int) -> list[Problem]:
    """Raises DataError where anything follows the end of the tar: tarfile takes a damaged header for the end."""
    if end >= path.stat().st_size:
        return [Problem(str(path), "it has no end mark, so it may have been cut off", used=True)]
    with path.open("rb") as file:
        file.seek(end)
        while chunk := file.read(1 << 20):
            if chunk.strip(b"\0"):
                raise DataError(
                    f"{printable(path)} goes on after its end (byte {end}): it is damaged there, or tars were joined by "
                    "cat. Write it again, or join tars by `tar --concatenate`."
                )
    return []


def _read_headers(path: Path) -> tuple[list[tarfile.TarInfo], list[Problem]]:
    """The headers of all members, and a remark where the tar has no end."""
    headers = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                headers.append(member)
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
            end = tar.offset
    except tarfile.TarError as error:
        raise DataError(
            f"{printable(path)} is no whole, uncompressed tar file ({error}). Unpack it, or write it again."
        ) from error
    return headers, _check_end(path, end)


def _why_not(member: tarfile.TarInfo) -> str:
    """Why a member is not read; empty for a file of the user's own and for a link."""
    for part in member.name.split("/"):
        if part not in ("", ".", "..") and (reason := why_hidden(part)):
            return reason
    if member.issparse():
        return "it is a sparse file of a tar, whose content is not in one piece"
    return "" if member.isreg() or member.islnk() or member.issym() else NO_FILE


def _target(name: str, member: tarfile.TarInfo) -> str:
    """The name that a link leads to."""
    there = member.linkname if member.islnk() else posixpath.join(posixpath.dirname(name), member.linkname)
    return posixpath.normpath(there)


def _list_members(path: Path) -> _Members:
    """All members, with links resolved. Raises DataError where a name comes twice."""
    content: dict[str, Member] = {}  # of every regular file
    links: dict[str, str] = {}
    own: dict[str, str] = {}  # names as they stand in the tar
    count = 0
    headers, problems = _read_headers(path)
    for member in headers:
        if member.isdir():
            continue
        name, count = posixpath.normpath(member.name), count + 1
        if member.isreg() and not member.issparse():
            if name in content or name in links:
                raise DataError(_describe_repeated_key(path, name, name))
            content[name] = Member(name, member.offset_data, member.size, member.name)
        if reason := _why_not(member):
            problems.append(Problem(f"{path}: {name}", reason))
            continue
        if not member.isreg():
            if name in own:
                raise DataError(_describe_repeated_key(path, name, name))
            links[name] = _target(name, member)
        own[name] = member.name
    files = []
    for name, stored in own.items():
        there, steps = name, 0
        while there in links and steps < _LINKS:
            there, steps = links[there], steps + 1
        if there in content:
            files.append(content[there]._replace(name=name, stored=stored))
        else:
            problems.append(Problem(f"{path}: {name}", "it is a link to a file that the tar has not"))
    return _Members(files, problems, count)


def _describe_repeated_key(path: Path, one: str, other: str) -> str:
    names = printable(one) if one == other else f"{printable(one)} and {printable(other)}"
    return (
        f"{printable(path)}: one key comes twice ({names}), so which class is whose cannot be told. Give every sample a "
        "name of its own, as where two tars were joined."
    )


def _by_key(files: list[Member]) -> dict[str, list[Member]]:
    """Files by the name up to the first dot, with their runs."""
    groups: dict[str, list[Member]] = {}
    run, last = 0, None
    for file in files:
        key = file.key
        if key != last:
            run, last = run + 1, key
        groups.setdefault(key, []).append(file._replace(run=run))
    return groups


def _by_stem(files: list[Member]) -> dict[str, list[Member]]:
    groups: dict[str, list[Member]] = {}
    for file in files:
        groups.setdefault(file.stem, []).append(file)
    return groups


def _of(kind: str, files: list[Member]) -> list[Member]:
    return [file for file in files if file.kind == kind]


def _pair(path: Path, files: list[Member], shared: Member | None) -> Iterator[_Sample]:
    """The sample of files that differ in their extensions alone; `shared`: the class of all, where there is one."""
    images, words = _of("image", files), _of("class", files)
    if len(images) > 1 and images[0].run != images[1].run:
        raise DataError(_describe_repeated_key(path, images[0].name, images[1].name))
    if len(words) > 1:
        raise DataError(_describe_repeated_key(path, words[0].name, words[1].name))
    if images:
        yield _Sample(images[0], words[0] if words else shared)


def _form_samples(path: Path, group: list[Member]) -> Iterator[_Sample]:
    """The samples of the files with one key: one by the first dot, and those that the last dot tells apart."""
    plain = [file for file in group if "." not in file.extension]
    dotted = [file for file in group if "." in file.extension]
    first = list(_pair(path, plain, None))
    yield from first
    shared = next(iter(_of("class", plain)), None) if not first else None
    for files in _by_stem(dotted).values():
        if not first or _of("class", files):
            yield from _pair(path, files, shared)


def _why_unused(file: Member) -> str:
    if file.kind == "image":
        return "it is another image of a sample"
    if file.kind == "class":
        return "it is a class without an image"
    if file.name.endswith((".tar", ".tgz", ".gz", ".zip")):
        return "it is an archive within the tar, which is not opened"
    return "it is neither an image nor a .cls"


def _read_word(path: Path, descriptor: int, member: Member) -> str:
    if member.size > _LONGEST_WORD:
        raise DataError(
            f"{printable(path)}: {printable(member.name)} has {member.size} bytes, and should hold a class."
        )
    content = os.pread(descriptor, member.size, member.offset)
    return decode_text(content, f"{printable(path)}: {printable(member.name)}").strip()


def scan_tar(path: Path) -> ShardContent:
    """The images of a tar, in its order. Raises DataError where it is damaged, OSError where it cannot be opened."""
    _refuse_compressed(path)
    members = _list_members(path)
    samples = [sample for group in _by_key(members.files).values() for sample in _form_samples(path, group)]
    used = {sample.image.name for sample in samples} | {sample.word.name for sample in samples if sample.word}
    rest = [Problem(f"{path}: {file.name}", _why_unused(file)) for file in members.files if file.name not in used]
    with path.open("rb") as file:
        words = [_read_word(path, file.fileno(), sample.word) if sample.word else "" for sample in samples]
    entries = [
        Entry(sample.image.offset, sample.image.size, sample.image.stored, word)
        for sample, word in zip(samples, words, strict=True)
    ]
    inventory = Inventory(members.total, len(used) - len(entries))
    return ShardContent(entries, fold_problems([*members.problems, *rest]), inventory)
