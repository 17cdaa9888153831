"""Stored distributions: what comes back, what is refused, what a lost process costs."""

from pathlib import Path

import numpy as np
import pytest

from fastmpl.data.errors import DataError
from fastmpl.data.stores.distributions import Probabilities, RowFormat, total_variation
from fastmpl.data.stores.store import HEADER, open_store
from fastmpl.data.stores.store_writer import StorePlan, StoreWriter


def rows(n: int, classes: int, seed: int = 0) -> Probabilities:
    """Peaked distributions, as a trained network gives them."""
    logits = np.random.default_rng(seed).normal(0, 4, (n, classes))
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return (raised / raised.sum(1, keepdims=True)).astype(np.float32)


def plan(n: int = 50, classes: int = 12, kept: int = 4, shard_rows: int = 16) -> StorePlan:
    return StorePlan(n, classes, kept, images="abc", teacher="a test", shard_rows=shard_rows)


def write(folder: Path, plan: StorePlan, given: Probabilities, *, rank: int = 0, world: int = 1) -> StoreWriter:
    writer = StoreWriter(folder, plan, rank=rank, world=world)
    for shard in writer.missing():
        first, last = plan.range(shard)
        writer.write(shard, [given[first : last - 1], given[last - 1 : last]])
    writer.finish()
    return writer


@pytest.mark.parametrize(("classes", "kept"), [(7, 7), (7, 99), (12, 1), (12, 4), (1000, 16), (70_000, 3)])
def test_the_kept_classes_come_back_in_half_precision_and_the_rest_share_what_remains(classes: int, kept: int) -> None:
    given, form = rows(9, classes), RowFormat(classes, kept)
    found = form.unpack(form.pack(given))
    top = np.argsort(-given, axis=1, kind="stable")[:, :kept]
    np.testing.assert_allclose(
        np.take_along_axis(found, top, 1), np.take_along_axis(given, top, 1), rtol=2**-11, atol=2**-25
    )
    np.testing.assert_allclose(found.sum(1), 1, atol=2e-3)
    others = np.ones_like(given, bool)
    np.put_along_axis(others, top, False, 1)
    for row, other in zip(found, others, strict=True):
        assert other.sum() < 2 or np.ptp(row[other]) == 0


def test_a_row_of_16_classes_is_66_bytes() -> None:
    assert 2 * RowFormat(1000, 16).words * 1_280_000 == 84_480_000


def test_any_batch_comes_back_from_several_shards_in_its_order(tmp_path: Path) -> None:
    given = rows(50, 12)
    write(tmp_path, plan(kept=12), given)
    store = open_store(tmp_path)
    assert len(store.tables) == 4
    index = np.array([49, 0, 17, 17, 31, 32, 3])
    np.testing.assert_allclose(store.probabilities(index), given[index], rtol=2**-11, atol=2**-25)


def test_looking_up_copies_no_table(tmp_path: Path) -> None:
    write(tmp_path, plan(), rows(50, 12))
    for table in open_store(tmp_path).tables:
        assert isinstance(table.base, np.memmap) or isinstance(table.base.base, np.memmap)  # type: ignore[union-attr]
        assert not table.flags.writeable


def test_the_header_holds_the_measured_error(tmp_path: Path) -> None:
    given = rows(50, 12)
    write(tmp_path, plan(kept=2), given)
    store = open_store(tmp_path)
    apart = total_variation(store.probabilities(np.arange(50)), given)
    error = store.header.error
    assert error.mean_total_variation == pytest.approx(apart.mean())
    assert error.largest_total_variation == pytest.approx(apart.max())
    assert error.changed_top == 0
    assert apart.mean() > 0.01


def test_the_shards_of_two_ranks_are_one_store(tmp_path: Path) -> None:
    given = rows(50, 12)
    write(tmp_path / "two", plan(), given, rank=1, world=2)
    with pytest.raises(DataError, match="is not finished"):
        open_store(tmp_path / "two")
    write(tmp_path / "two", plan(), given, rank=0, world=2)
    write(tmp_path / "one", plan(), given)
    for name in (HEADER, *(f"shard-0000{i}.bin" for i in range(4))):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_an_interrupted_store_is_continued_and_not_written_again(tmp_path: Path) -> None:
    given = rows(50, 12)
    writer = StoreWriter(tmp_path, plan())
    writer.write(1, [given[16:32]])
    (tmp_path / "shard-00002.123.tmp").write_bytes(b"half a shard")
    written = (tmp_path / "shard-00001.bin").stat().st_mtime_ns
    assert list(StoreWriter(tmp_path, plan()).missing()) == [0, 2, 3]
    write(tmp_path, plan(), given)
    assert (tmp_path / "shard-00001.bin").stat().st_mtime_ns == written
    assert open_store(tmp_path).header.rows == 50


def test_a_store_of_something_else_is_not_continued(tmp_path: Path) -> None:
    write(tmp_path, plan(kept=4), rows(50, 12))
    with pytest.raises(DataError, match="kept 4 there, 5 here"):
        StoreWriter(tmp_path, plan(kept=5))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "said"),
    [(truncate, "holds 286 bytes, and should hold 288"), (alter, "was altered"), (Path.unlink, "is missing")],
)
def test_a_damaged_shard_is_named_and_refused(damage: object, said: str, tmp_path: Path) -> None:
    write(tmp_path, plan(), rows(50, 12))
    damage(tmp_path / "shard-00001.bin")  # type: ignore[operator]
    with pytest.raises(DataError, match=said) as refused:
        open_store(tmp_path)
    assert "shard-00001.bin" in str(refused.value)


def test_a_truncated_shard_is_written_again_by_the_same_command(tmp_path: Path) -> None:
    given = rows(50, 12)
    write(tmp_path, plan(), given)
    truncate(tmp_path / "shard-00001.bin")
    write(tmp_path, plan(), given)
    assert open_store(tmp_path).header.rows == 50


@pytest.mark.parametrize("text", ["", "{}", '{"format": "another"}', "[]"])
def test_a_damaged_header_is_named_and_refused(text: str, tmp_path: Path) -> None:
    write(tmp_path, plan(), rows(50, 12))
    (tmp_path / HEADER).write_text(text)
    with pytest.raises(DataError, match=r"header\.json is not the header"):
        open_store(tmp_path)


def test_a_store_of_other_images_or_classes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, plan(), rows(50, 12))
    store = open_store(tmp_path)
    store.check_fits(images="abc", classes=12)
    with pytest.raises(DataError, match="other images"):
        store.check_fits(images="abd", classes=12)
    with pytest.raises(DataError, match="12 classes, and the data has 10"):
        store.check_fits(images="abc", classes=10)
