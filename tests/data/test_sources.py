"""Sources give arrays of the promised shapes; a damaged or missing file is one sentence."""

import gzip
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fastmpl.data import sources
from fastmpl.data.errors import DataError
from fastmpl.data.normalise import measure
from fastmpl.data.readers.idx import read_idx

Make = Callable[..., SimpleNamespace]


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Twelve and four tiny images in Fashion-MNIST's files, two of them compressed."""
    for part, n in (("train", 12), ("t10k", 4)):
        images = np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx((np.arange(n) % 10).astype(np.uint8)))
    return tmp_path


def test_digits_are_bytes_with_a_balanced_test_set_fixed_for_ever(settings: Make) -> None:
    arrays = sources.load(settings())
    assert arrays.train_images.shape == (1297, 8, 8, 1)
    assert arrays.train_images.dtype == np.uint8
    assert (arrays.train_images.min(), arrays.train_images.max()) == (0, 255)
    np.testing.assert_array_equal(np.bincount(arrays.test_labels), [50] * 10)
    assert int(arrays.test_images.sum(dtype=np.int64)) == int(sources.load(settings()).test_images.sum(dtype=np.int64))


def test_digits_are_those_of_scikit_learn() -> None:
    loaded = load_digits()
    arrays = sources.digits("")
    theirs = np.rint(loaded.images * (255 / 16)).astype(np.uint8).reshape(-1, 64)
    ours = np.concatenate([arrays.train_images, arrays.test_images]).reshape(-1, 64)
    labels = np.concatenate([arrays.train_labels, arrays.test_labels])
    pairs = [np.column_stack([pixels, marks]) for pixels, marks in ((theirs, loaded.target), (ours, labels))]
    np.testing.assert_array_equal(*(each[np.lexsort(each.T)] for each in pairs))


def test_no_test_digit_is_a_training_digit(settings: Make) -> None:
    arrays = sources.load(settings())
    train = {image.tobytes() for image in arrays.train_images}
    assert not any(image.tobytes() in train for image in arrays.test_images)


def test_fashion_mnist_is_read_plain_or_compressed(settings: Make, fashion: Path) -> None:
    arrays = sources.load(settings(source="fashion_mnist", root=str(fashion)))
    assert arrays.train_images.shape == (12, 2, 2, 1)
    assert arrays.test_labels.tolist() == [0, 1, 2, 3]
    assert arrays.train_images[3].ravel().tolist() == [12, 13, 14, 15]
    assert arrays.classes[9] == "Ankle boot"


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").exists(), reason="needs Debian's dataset-fashion-mnist"
)
def test_the_debian_package_is_used_without_a_root(settings: Make) -> None:
    arrays = sources.load(settings(source="fashion_mnist"))
    assert arrays.train_images.shape == (60_000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(arrays.test_labels), [1000] * 10)
    constants = measure(arrays.train_images)
    np.testing.assert_allclose([constants.mean[0] / 255, constants.std[2] / 255], [0.2860, 0.3530], atol=1e-4)


def test_fashion_mnist_is_found_where_torchvision_puts_it(settings: Make, fashion: Path, tmp_path: Path) -> None:
    raw = tmp_path / "downloads" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in fashion.glob("*ubyte*"):
        file.rename(raw / file.name)
    assert len(sources.load(settings(source="fashion_mnist", root=str(tmp_path / "downloads"))).train_labels) == 12


def test_absent_files_are_named_with_the_remedy(settings: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte .* was not found in .*set data.root"):
        sources.load(settings(source="fashion_mnist", root=str(tmp_path)))


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    whole = compress(idx(np.random.default_rng(0).integers(0, 256, (9, 5, 5)).astype(np.uint8)))
    path = tmp_path / "images"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"download it again\.$") as caught:
            read_idx(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    path.write_bytes(whole)
    assert read_idx(path).shape == (9, 5, 5)


@pytest.mark.parametrize(
    "content", [b"\x00\x00\x0d\x01\x00\x00\x00\x01abcd", b"<html>", idx(np.zeros(3, np.uint8)) + b"x"]
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(DataError, match="download it again"):
        read_idx(tmp_path / "images")


def test_a_header_that_promises_terabytes_is_refused_before_reading(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(bytes([0, 0, 8, 2]) + b"\xff" * 8)
    with pytest.raises(DataError, match="damaged header"):
        read_idx(tmp_path / "images")


def test_images_and_labels_that_do_not_belong_together_are_refused(settings: Make, fashion: Path) -> None:
    (fashion / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(11, np.uint8)))
    with pytest.raises(DataError, match="do not belong together"):
        sources.load(settings(source="fashion_mnist", root=str(fashion)))


def test_two_moons_are_two_thousand_points_that_interleave(settings: Make) -> None:
    arrays = sources.load(settings(source="two_moons"))
    assert arrays.train_images.shape == (2000, 2)
    assert arrays.train_images.dtype == np.float32
    np.testing.assert_array_equal(np.bincount(arrays.train_labels), [1000, 1000])
    points, upper = arrays.train_images.astype(np.float64), arrays.train_labels == 0
    radius = np.where(upper, np.hypot(*points.T), np.hypot(points[:, 0] - 1, points[:, 1] - 0.5))
    np.testing.assert_allclose([radius.mean(), radius.std()], [1, 0.1], atol=0.02)
    assert points[upper, 1].mean() > points[~upper, 1].mean()


def test_an_unknown_source_names_the_known_ones(settings: Make) -> None:
    with pytest.raises(DataError, match="choose one of digits, fashion_mnist, two_moons"):
        sources.load(settings(source="mnist"))
