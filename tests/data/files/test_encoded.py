"""Images by random access inside larger files."""

import os
from pathlib import Path

import numpy as np
import pytest

from fastmpl.data.files.encoded import OPEN_FILES, Names, Pieces


def test_more_shards_than_may_be_open_are_read_in_any_order(tmp_path: Path) -> None:
    count = OPEN_FILES + 40
    for number in range(count):
        (tmp_path / f"{number}").write_bytes(bytes([number % 251] * 3))
    numbers = np.arange(count, dtype=np.int64)
    pieces = Pieces(tmp_path, [str(n) for n in numbers], numbers.astype(np.int32), 0 * numbers + 1, 0 * numbers + 2,
                    Names(map(str, numbers)))  # fmt: skip
    before = len(os.listdir("/proc/self/fd"))
    for index in np.random.default_rng(0).permutation(np.tile(numbers, 2)):
        assert pieces.read(int(index)).tolist() == [index % 251] * 2
    assert len(os.listdir("/proc/self/fd")) <= before + OPEN_FILES + 1
    del pieces
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_shard_that_ends_too_early_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    one = np.ones(1, np.int64)
    pieces = Pieces(tmp_path, ["a"], np.zeros(1, np.int32), one, 9 * one, Names(["x"]))
    with pytest.raises(OSError, match="a ends within x"):
        pieces.read(0)


def test_images_at_other_places_are_told_from_these(tmp_path: Path) -> None:
    def digest(shard: int = 0, offset: int = 1, size: int = 2) -> str:
        columns = np.array([shard, 1], np.int32), np.array([offset, 1]), np.array([size, 1])
        return Pieces(tmp_path, ["a", "b"], *columns, Names(["x", "y"])).digest

    assert digest() == digest()
    assert len({digest(), digest(shard=1), digest(offset=7), digest(size=7)}) == 4
