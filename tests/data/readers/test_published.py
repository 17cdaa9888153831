"""CIFAR and SVHN through torchvision's readers, on small files in the official formats.

torchvision reads a file only if its MD5 sum is the published one. Generated files have other sums, so these tests put
the generated files' sums into torchvision's tables; every other line that runs is the one that reads genuine files.
"""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from fastmpl import cli
from fastmpl.data import sources
from fastmpl.data.errors import DataError
from fastmpl.data.readers import published

Make = Callable[..., SimpleNamespace]
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(12) % 10


def dumped(path: Path, content: dict[str, object]) -> str:
    """Writes as CIFAR's authors do; the file's MD5 sum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


def batch(first: int, last: int, key: str) -> dict[str, object]:
    rows = IMAGES[first:last].transpose(0, 3, 1, 2).reshape(last - first, -1)  # 1024 red, 1024 green, 1024 blue
    return {"data": rows, key: LABELS[first:last].tolist()}


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images in each of five training batches, two in the test batch."""
    folder = tmp_path / "cifar-10-batches-py"
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    sums = [dumped(folder / name, batch(2 * k, 2 * k + 2, "labels")) for k, name in enumerate(names)]
    listed = [list(pair) for pair in zip(names, sums, strict=True)]
    meta = dumped(folder / "batches.meta", {"label_names": [f"class {number}" for number in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", listed[:5])
    monkeypatch.setattr(CIFAR10, "test_list", listed[5:])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})
    return tmp_path


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cifar-100-python"
    monkeypatch.setattr(CIFAR100, "train_list", [["train", dumped(folder / "train", batch(0, 10, "fine_labels"))]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", dumped(folder / "test", batch(10, 12, "fine_labels"))]])
    meta = dumped(folder / "meta", {"fine_label_names": [f"class {number}" for number in range(100)]})
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": meta})
    return tmp_path


@pytest.fixture
def svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As SVHN's authors: images [32, 32, 3, N], labels [N, 1] from 1 to 10, of which 10 is the digit 0."""
    split_list = dict(SVHN.split_list)
    for part, rows in (("train", slice(0, 10)), ("test", slice(10, 12))):
        labels = np.where(LABELS[rows] == 0, 10, LABELS[rows]).astype(np.uint8)[:, None]
        path = tmp_path / f"{part}_32x32.mat"
        savemat(path, {"X": IMAGES[rows].transpose(1, 2, 3, 0), "y": labels})
        split_list[part] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", split_list)
    return tmp_path


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100), ("svhn", 10)])
def test_every_image_is_read_with_its_label(
    request: pytest.FixtureRequest, settings: Make, name: str, classes: int
) -> None:
    arrays = sources.load(settings(source=name, root=str(request.getfixturevalue(name))))
    np.testing.assert_array_equal(arrays.train_images, IMAGES[:10])
    np.testing.assert_array_equal(arrays.test_images, IMAGES[10:])
    np.testing.assert_array_equal(arrays.train_labels, LABELS[:10])
    np.testing.assert_array_equal(arrays.test_labels, LABELS[10:])
    assert arrays.train_images.dtype == np.uint8
    assert arrays.train_labels.dtype == np.int64
    assert len(arrays.classes) == classes


def test_the_folder_of_the_files_themselves_is_understood(cifar10: Path) -> None:
    np.testing.assert_array_equal(
        published.read_published("cifar10", str(cifar10 / "cifar-10-batches-py")).train_images, IMAGES[:10]
    )


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("cifar10", "cifar-10-batches-py/batches.meta"),
        ("cifar100", "cifar-100-python/test"),
        ("svhn", "train_32x32.mat"),
    ],
)
def test_a_truncated_file_and_a_missing_one_are_named(request: pytest.FixtureRequest, name: str, file: str) -> None:
    root = request.getfixturevalue(name)
    content = (root / file).read_bytes()
    for length in (0, 100, len(content) - 1):
        (root / file).write_bytes(content[:length])
        with pytest.raises(DataError, match=r"is truncated or altered .* download it again") as refused:
            published.read_published(name, str(root))
        assert str(root / file) in str(refused.value)
    (root / file).unlink()
    with pytest.raises(DataError, match=rf"{Path(file).name} was not found in {(root / file).parent}: set data\.root"):
        published.read_published(name, str(root))


def test_a_pickle_that_is_not_the_authors_own_is_never_run(cifar10: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (cifar10 / "it ran",)  # type: ignore[return-value]

    (cifar10 / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(DataError, match="altered"):
        published.read_published("cifar10", str(cifar10))
    assert not (cifar10 / "it ran").exists()


@pytest.mark.parametrize("name", list(published.SETS))
def test_nothing_is_downloaded_unless_it_is_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("downloads")

    for reader in (CIFAR10, CIFAR100, SVHN):
        monkeypatch.setattr(reader, "download", fail)
    path = tmp_path / "cfg.toml"
    path.write_text(f'[run]\noutput = "{tmp_path}"\n[data]\nsource = "{name}"\nroot = "{tmp_path}/none"\n')
    assert cli.main(["check", str(path)]) == 3
    said = capsys.readouterr().err
    assert "--download" in said
    assert f"{tmp_path}/none" in said


def test_a_download_is_asked_for_by_one_option_and_its_failure_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: CIFAR10) -> None:
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", fail)
    path = tmp_path / "cfg.toml"
    path.write_text(f'[run]\noutput = "{tmp_path}"\n[data]\nsource = "cifar10"\nroot = "{tmp_path}/none"\n')
    assert cli.main(["check", str(path), "--download"]) == 3
    sentence = f"Data: CIFAR-10 could not be downloaded to {tmp_path}/none: no network.\n"
    assert capsys.readouterr().err == sentence
    path.write_text("")
    assert cli.main(["check", str(path), "--download"]) == 3
    assert "cannot be downloaded: only cifar10, cifar100, svhn can." in capsys.readouterr().err
