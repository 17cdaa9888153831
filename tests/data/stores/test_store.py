"""Stored distributions: what comes back, what is refused, what a lost process costs."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastmpl.data.build import build
from fastmpl.data.dataset import digest_of
from fastmpl.data.errors import DataError
from fastmpl.data.sources import digits
from fastmpl.data.stores.distributions import Probabilities, RowFormat, total_variation
from fastmpl.data.stores.store import HEADER, checksum, open_store
from fastmpl.data.stores.store_writer import PLAN, StorePlan, StoreWriter

NAMES = tuple("abcdefghijkl")


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


@pytest.mark.parametrize("text", ["", "{}", '{"format": "another"}', "[]", "null", "3"])
def test_a_damaged_header_is_named_and_refused(text: str, tmp_path: Path) -> None:
    write(tmp_path, plan(), rows(50, 12))
    (tmp_path / HEADER).write_text(text)
    with pytest.raises(DataError, match=r"header\.json is not the header"):
        open_store(tmp_path)


def test_a_store_of_other_images_or_classes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, plan(), rows(50, 12))
    store = open_store(tmp_path)
    store.fit(images="abc", classes=NAMES)
    with pytest.raises(DataError, match="other images"):
        store.fit(images="abd", classes=NAMES)
    with pytest.raises(DataError, match="12 classes, and the data has 10"):
        store.fit(images="abc", classes=NAMES[:10])


def test_a_store_of_the_same_classes_in_another_order_is_mapped_by_name(tmp_path: Path) -> None:
    given, index = rows(50, 12), np.array([3, 40])
    write(tmp_path, plan(kept=12)._replace(class_names=NAMES), given)
    backwards = open_store(tmp_path).fit(images="abc", classes=NAMES[::-1])
    np.testing.assert_allclose(backwards.probabilities(index), given[index][:, ::-1], rtol=2**-11, atol=2**-25)
    numbers, sure = backwards.top(index)
    np.testing.assert_array_equal(numbers, 11 - given[index].argmax(1))
    np.testing.assert_allclose(sure, given[index].max(1), rtol=2**-11)


def test_a_store_of_as_many_but_other_classes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, plan()._replace(class_names=NAMES), rows(50, 12))
    with pytest.raises(
        DataError, match=r"data\.store = .* has other classes than the data: it lacks 'z' and it adds 'l'"
    ):
        open_store(tmp_path).fit(images="abc", classes=(*NAMES[:-1], "z"))


def rewrite(folder: Path, shard: int, packed: np.ndarray) -> None:  # type: ignore[type-arg]
    """Another program's shard: its size and checksum are those in the header."""
    path = folder / f"shard-{shard:05d}.bin"
    path.write_bytes(packed.tobytes())
    header = json.loads((folder / HEADER).read_text())
    header["shards"][shard] |= {"bytes": path.stat().st_size, "blake2b": checksum(path)}
    (folder / HEADER).write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("column", "word", "said"),
    [
        (5, 0x7E00, "holds numbers that are no probabilities"),
        (4, 0xBC00, "no probabilities"),
        (0, 12, "names class 12 of 12"),
    ],
    ids=["nan", "negative", "class"],
)
def test_a_row_that_is_no_distribution_is_refused_though_its_checksum_is_right(
    column: int, word: int, said: str, tmp_path: Path
) -> None:
    write(tmp_path, plan(), rows(50, 12))
    packed = open_store(tmp_path).tables[1].copy()
    packed[7, column] = word
    rewrite(tmp_path, 1, packed)
    with pytest.raises(DataError, match=said) as refused:
        open_store(tmp_path)
    assert "shard-00001.bin" in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [{"kept": 13}, {"rows": -1}, {"classes": "12"}, {"shard_rows": 0}, {"class_names": ["a"]}, {"rows": 17}],
    ids=str,
)
def test_a_header_whose_numbers_do_not_go_together_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    write(tmp_path, plan(), rows(50, 12))
    header = json.loads((tmp_path / HEADER).read_text())
    (tmp_path / HEADER).write_text(json.dumps(header | change))
    with pytest.raises(DataError) as refused:
        open_store(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_header_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "store", plan(), rows(50, 12))
    (tmp_path / "store" / "shard-00000.bin").rename(tmp_path / "shard-00000.bin")
    text = (tmp_path / "store" / HEADER).read_text()
    (tmp_path / "store" / HEADER).write_text(text.replace("shard-00000.bin", "../shard-00000.bin"))
    with pytest.raises(DataError, match="lies outside the store"):
        open_store(tmp_path / "store")


def test_a_store_of_version_0_1_0_without_class_names_is_continued_and_read(tmp_path: Path) -> None:
    given, old = rows(50, 12), plan()
    StoreWriter(tmp_path, old).write(1, [given[16:32]])
    written = json.loads((tmp_path / PLAN).read_text())
    del written["class_names"]
    (tmp_path / PLAN).write_text(json.dumps(written))
    write(tmp_path, old._replace(class_names=NAMES), given)
    header = json.loads((tmp_path / HEADER).read_text())
    del header["class_names"]
    (tmp_path / HEADER).write_text(json.dumps(header))
    assert open_store(tmp_path).fit(images="abc", classes=NAMES[::-1]).order is None


def test_a_plan_of_which_no_shard_was_written_does_not_block_another(tmp_path: Path) -> None:
    StoreWriter(tmp_path, plan(kept=4))
    write(tmp_path, plan(kept=5), rows(50, 12))
    assert open_store(tmp_path).header.kept == 5


def test_what_is_discarded_leaves_no_trace_and_what_others_wrote_stays(tmp_path: Path) -> None:
    given, folder = rows(50, 12), tmp_path / "store"
    alone = StoreWriter(folder, plan())
    alone.write(0, [given[:16]])
    alone.discard()
    assert not folder.exists()
    StoreWriter(folder, plan(), rank=1, world=2).write(1, [given[16:32]])
    failed = StoreWriter(folder, plan(), rank=0, world=2)
    failed.write(0, [given[:16]])
    failed.discard()
    assert sorted(path.name for path in folder.iterdir()) == [PLAN, "shard-00001.bin", "shard-00001.json"]


@pytest.mark.parametrize(("names", "said"), [(tuple("0123456789"), 0), (tuple("9876543210"), 1)])
def test_a_run_gets_stored_rows_in_the_order_of_its_classes_and_says_so(
    names: tuple[str, ...], said: int, settings: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130 to build a run's data")
    arrays = digits("")
    given = rows(len(arrays.train_labels), 10)
    described = StorePlan(len(given), 10, 10, digest_of(arrays.train_images), "a test", 2000, names)
    write(tmp_path, described, given)
    data = build(settings(store=str(tmp_path), flip=False, shift=0.0, cutout=0.0), seed=0)
    batch = data.train.next()
    expected = given[batch.unlabelled_index.numpy()]
    assert batch.stored_unlabelled is not None
    np.testing.assert_allclose(
        batch.stored_unlabelled, expected[:, ::-1] if said else expected, rtol=2**-11, atol=2**-25
    )
    assert sum("matched by name" in remark for remark in data.remarks()) == said
