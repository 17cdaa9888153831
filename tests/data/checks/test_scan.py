"""All images looked at by several processes: each bad one is found, copies are known, and nothing stops it."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from fastmpl.data.checks.scan import CHUNK, CRASHED, scan
from fastmpl.data.files.encoded import Bytes, Files, Names
from fastmpl.data.files.listing import list_image_files
from tests.pictures import BAD, COLOURS, DECODED_BAD, fill, spoil


def files(root: Path) -> Files:
    return Files(root, list_image_files(root, ["."])[0].names)


def pictures(root: Path) -> Files:
    """Thirteen pictures, of every kind."""
    fill(root, np.random.default_rng(0), COLOURS["red"], 13)
    return files(root)


def test_each_bad_file_is_found_with_its_reason_and_each_odd_one_is_told(tmp_path: Path) -> None:
    whole = pictures(tmp_path / "a")
    spoil(whole.root, np.random.default_rng(0))
    images = files(whole.root)
    found = scan(images, processes=2)
    bad = {Path(images.names[index]).name: reason for index, reason in found.bad.items()}
    expected = {name: reason for name, reason in BAD.items() if name in DECODED_BAD}
    assert bad.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in bad[name]
    assert len(found.odd) == 3
    assert np.flatnonzero(found.digests == 0).tolist() == sorted(found.bad)


def test_copies_of_a_picture_are_known_whatever_file_they_are_in(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.fromarray(noise).save(tmp_path / "b.bmp")
    Image.fromarray(noise.reshape(8, 9, 3)).save(tmp_path / "c.png")
    first, second, other = scan(files(tmp_path), processes=1).digests
    assert first == second != other


class Trap:
    """Images of which some end the process that reads them, as a decoder with a fault would."""

    def __init__(self, content: bytes, count: int, traps: set[int]) -> None:
        self.names = Names(f"{number}.png" for number in range(count))
        self.digest, self.content, self.traps = "", content, traps

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Bytes:
        if index in self.traps:
            os._exit(139)
        return np.frombuffer(self.content, np.uint8)


def test_an_image_that_crashes_its_decoder_is_bad_like_any_other(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    count = CHUNK + 3
    seen: list[int] = []
    found = scan(Trap((tmp_path / "a.png").read_bytes(), count, {1, count - 1}), processes=1, on_progress=seen.append)
    assert found.bad == {1: CRASHED, count - 1: CRASHED}
    assert seen == [CHUNK, count]
