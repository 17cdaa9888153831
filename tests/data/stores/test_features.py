"""Stored features: what comes back, what is refused, what a lost process costs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastmpl.data.errors import DataError
from fastmpl.data.stores.feature_writer import FeatureWriter
from fastmpl.data.stores.features import HEADER, FeaturePlan, Rows, measure_features, open_features

PLAN = FeaturePlan(train=10, test=5, features=3, views=2, images="abc", network="a test", shard_images=4)


def table(name: str) -> Rows:
    count = PLAN.images_of(name)
    return np.random.default_rng(len(name)).normal(size=(count, *PLAN.row(name))).astype(np.float32)


def write(folder: Path, plan: FeaturePlan = PLAN, shards: int = 99) -> None:
    writer = FeatureWriter(folder, plan)
    for _, (name, first, end) in zip(range(shards), list(writer.missing()), strict=False):
        writer.write(name, first, end, [table(name)[first : end - 1], table(name)[end - 1 : end]])
    if not list(writer.missing()):
        writer.finish()


def test_every_table_comes_back_from_its_shards(tmp_path: Path) -> None:
    write(tmp_path)
    store = open_features(tmp_path)
    assert len(PLAN.shards()) == 3 + 2 + 3
    for name in ("centre", "test", "views"):
        np.testing.assert_array_equal(getattr(store, name), table(name))


def test_an_interrupted_store_continues_with_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, shards=3)
    with pytest.raises(DataError, match="is not finished"):
        open_features(tmp_path)
    assert [shard[0] for shard in FeatureWriter(tmp_path, PLAN).missing()] == [
        "test",
        "test",
        "views",
        "views",
        "views",
    ]
    write(tmp_path)
    np.testing.assert_array_equal(open_features(tmp_path).views, table("views"))


def test_a_lost_shard_alone_is_written_again(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "views-000000004.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"views-000000004.bin holds 188 bytes, and should hold 192"):
        open_features(tmp_path)
    assert list(FeatureWriter(tmp_path, PLAN).missing()) == [("views", 4, 8)]
    write(tmp_path)
    np.testing.assert_array_equal(open_features(tmp_path).views, table("views"))


def flip_bit(folder: Path) -> None:
    path = folder / "centre-000000000.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


def name_outside(folder: Path) -> None:
    header = json.loads((folder / HEADER).read_text())
    header["shards"][0]["file"] = "../centre-000000000.bin"
    (folder / HEADER).write_text(json.dumps(header))


def claim_more(folder: Path) -> None:
    header = json.loads((folder / HEADER).read_text())
    header["plan"]["features"] = 3.0
    (folder / HEADER).write_text(json.dumps(header))


def empty_header(folder: Path) -> None:
    (folder / HEADER).write_text("[]")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flip_bit, "checksum differs"),
        (name_outside, "other shards"),
        (claim_more, "features is 3.0"),
        (empty_header, "not the header"),
    ],
)
def test_a_damaged_store_is_refused(damage: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=sentence):
        open_features(tmp_path)


def test_a_folder_of_other_features_is_not_continued(tmp_path: Path) -> None:
    write(tmp_path, shards=1)
    with pytest.raises(DataError, match="holds other features"):
        FeatureWriter(tmp_path, PLAN._replace(network="another"))


def test_features_that_are_not_finite_are_refused_and_leave_no_shard(tmp_path: Path) -> None:
    rows = table("centre")[:4]
    rows[2, 1] = np.inf
    with pytest.raises(DataError, match="not finite"):
        FeatureWriter(tmp_path, PLAN).write("centre", 0, 4, [rows])
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json"}


def test_a_feature_that_never_changes_becomes_zero() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (100, 4)).astype(np.float32)
    rows[:, 2] = 7
    found = measure_features(rows).apply(rows)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(0), [1, 1, 0, 1], atol=1e-6)
