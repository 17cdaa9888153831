"""fastmpl distill: from a run or a file of probabilities to a store, and from the store to a student."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmpl.commands.distill import TeacherSource, distill
from fastmpl.config import Config, load
from fastmpl.data.build import build as build_data
from fastmpl.data.errors import DataError
from fastmpl.data.stores.store import open_store
from fastmpl.errors import ConfigError, FastMPLError
from fastmpl.run import trainer
from fastmpl.run.classifier import load_network

DIGITS = Path(__file__).parents[2] / "launch" / "configs" / "digits.toml"
IMAGES, CLASSES = 1297, 10


def config(folder: Path, **changes: Any) -> Config:
    small = {"run.output": str(folder), "run.name": "small", "run.steps": 12, "run.evaluate_every": 12}
    return load(DIGITS, small | {key.replace("__", "."): value for key, value in changes.items()})


def silent(line: str) -> None:
    """Says nothing."""


def probabilities(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).dirichlet(np.full(CLASSES, 0.3), IMAGES)


def to_npy(path: Path, rows: np.ndarray[Any, Any]) -> Path:
    np.save(path.with_suffix(".npy"), rows)
    return path.with_suffix(".npy")


def shuffled(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    indexed = np.column_stack([np.arange(len(rows)), rows])
    return indexed[np.random.default_rng(1).permutation(len(rows))]


def to_indexed_npy(path: Path, rows: np.ndarray[Any, Any]) -> Path:
    return to_npy(path, shuffled(rows))


def to_csv(path: Path, rows: np.ndarray[Any, Any], header: str = "") -> Path:
    lines = [",".join([str(int(row[0])), *map(repr, row[1:].tolist())]) for row in shuffled(rows)]
    path.with_suffix(".csv").write_text("\n".join([header, *lines] if header else lines) + "\n")
    return path.with_suffix(".csv")


def to_csv_with_header(path: Path, rows: np.ndarray[Any, Any]) -> Path:
    return to_csv(path, rows, ",".join(["image", *(f"class {c}" for c in range(CLASSES))]))


@pytest.mark.parametrize("write", [to_npy, to_indexed_npy, to_csv, to_csv_with_header])
def test_probabilities_of_any_origin_become_the_store(write: Callable[..., Path], tmp_path: Path) -> None:
    given = probabilities()
    file = write(tmp_path / "given", given)
    header = distill(config(tmp_path), TeacherSource(probabilities=file), output=tmp_path / "store", tell=silent)
    assert header is not None and header.rows == IMAGES
    found = open_store(tmp_path / "store").probabilities(np.arange(IMAGES))
    np.testing.assert_allclose(found, given, rtol=1e-3, atol=1e-6)
    assert [path for path in (tmp_path / "store").iterdir() if path.is_dir()] == []


def test_the_distributions_of_a_run_are_its_students_on_whole_images(tmp_path: Path) -> None:
    trainer.train(config(tmp_path), quiet=True, report=False)
    distill(config(tmp_path), TeacherSource(teacher=str(tmp_path / "small")), output=tmp_path / "store", tell=silent)
    network = load_network(tmp_path / "small", classes=CLASSES, image_shape=(3, 8, 8)).eval()
    data = build_data(config(tmp_path).data, seed=0)
    index = np.array([1296, 3, 700])
    with torch.no_grad():
        expected = torch.softmax(network(data.examples(index).images), -1).numpy()
    np.testing.assert_allclose(open_store(tmp_path / "store").probabilities(index), expected, rtol=1e-3, atol=1e-6)


def test_views_are_averaged_and_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.train(config(tmp_path), quiet=True, report=False)
    teacher = str(tmp_path / "small")
    for views in (1, 2, 3):
        distill(config(tmp_path), TeacherSource(teacher, views=views), output=tmp_path / f"{views}", tell=silent)
    one, two, three = (open_store(tmp_path / f"{n}").probabilities(np.arange(IMAGES)) for n in (1, 2, 3))
    assert np.abs(two - one).max() > 0.01
    assert np.abs(three - two).max() > 0.01
    monkeypatch.setattr("fastmpl.data.stores.store_writer.SHARD_ROWS", 700)
    monkeypatch.setattr("fastmpl.commands.distill.StorePlan.__new__.__defaults__", (700, ()))
    monkeypatch.setenv("WORLD_SIZE", "2")
    headers = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        headers.append(
            distill(config(tmp_path), TeacherSource(teacher, views=2), output=tmp_path / "ranks", tell=silent)
        )
    assert headers[0] is None and headers[1] is not None and len(headers[1].shards) == 2
    np.testing.assert_allclose(open_store(tmp_path / "ranks").probabilities(np.arange(IMAGES)), two, atol=1e-6)


@pytest.mark.parametrize("method", ["reduced_mpl", "distillation"])
def test_a_student_learns_from_a_store_and_continues_where_it_was(method: str, tmp_path: Path) -> None:
    truth = build_data(config(tmp_path).data, seed=0).truth.numpy()
    file = to_npy(tmp_path / "given", 0.9 * np.eye(CLASSES)[truth] + 0.01)
    asked = {"method.name": method, "data.store": str(tmp_path / "store"), "run.steps": 120}
    if method == "distillation":
        asked["feedback.kind"] = "off"
    reduced = config(tmp_path, **asked)
    distill(reduced, TeacherSource(probabilities=file), tell=silent)
    results = trainer.train(reduced, quiet=True, report=False)
    assert results.last["student"]["test"] > 0.8
    assert "teacher" not in results.last  # it knows the stored images alone
    state = json.loads((tmp_path / "small" / "STATUS.json").read_text())
    assert state["state"] == "done"
    other = config(tmp_path, **asked | {"run.name": "other", "data.labels": 30})
    assert trainer.train(other, quiet=True, report=False).steps == 120


def test_an_unchanged_file_is_read_once_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    file = to_npy(tmp_path / "given", probabilities())
    said: list[str] = []
    for _ in range(2):
        distill(config(tmp_path), TeacherSource(probabilities=file), output=tmp_path / "store", tell=said.append)
    assert sum("shards written" in line for line in said) == 1
    to_npy(tmp_path / "given", probabilities(seed=1))
    with pytest.raises(DataError, match="holds other distributions"):
        distill(config(tmp_path), TeacherSource(probabilities=file), output=tmp_path / "store", tell=silent)


def test_a_failed_attempt_leaves_nothing_and_the_corrected_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmpl.commands.distill.StorePlan.__new__.__defaults__", (400, ()))  # the fault is in shard 3
    given, store = probabilities(), tmp_path / "store"
    wrong = given.copy()
    wrong[1290, 0] += 0.5
    for rows, fails in ((wrong, True), (given, False)):
        source = TeacherSource(probabilities=to_npy(tmp_path / "given", rows))
        if fails:
            with pytest.raises(DataError, match="row of image 1290"):
                distill(config(tmp_path), source, output=store, tell=silent)
            assert not store.exists()
        else:
            assert distill(config(tmp_path), source, output=store, tell=silent) is not None


def test_a_teacher_that_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FastMPLError):
        distill(config(tmp_path), TeacherSource(teacher=str(tmp_path / "none")), output=tmp_path / "store", tell=silent)
    assert not (tmp_path / "store").exists()


def test_a_store_carries_the_names_of_its_classes(tmp_path: Path) -> None:
    source = TeacherSource(probabilities=to_npy(tmp_path / "given", probabilities()))
    header = distill(config(tmp_path), source, output=tmp_path / "store", tell=silent)
    assert header is not None and header.class_names == tuple("0123456789")
    assert open_store(tmp_path / "store").header.class_names == header.class_names


def changed(place: tuple[int, int], value: float) -> np.ndarray[Any, Any]:
    rows = probabilities()
    rows[place] = value
    return rows


WRONG = [
    (lambda p: to_npy(p, changed((17, 3), 2.0)), r"the row of image 17 sums to .*Give probabilities"),
    (lambda p: to_npy(p, changed((17, 3), -1e-3)), "the row of image 17 has a negative number"),
    (lambda p: to_npy(p, changed((17, 3), np.nan)), "the row of image 17 sums to nan"),
    (lambda p: to_npy(p, probabilities()[:-1]), "has 1296 rows, and the data 1297 training images"),
    (lambda p: to_npy(p, probabilities()[:, :8]), r"expected floats \[1297, 10\]"),
    (lambda p: to_npy(p, np.zeros((2, 2), int)), "holds int64"),
    (lambda p: to_npy(p, shuffled(probabilities())[:-2]), "has no row for 2 of 1297 training images"),
    (lambda p: to_csv(p, probabilities()[:-3]), "has no row for 3 of 1297 training images, the first being '1294'"),
    (lambda p: to_csv(p, probabilities()[:, :9]), "line 1 has 10 columns; expected 11"),
    (lambda p: _text(p, "0," * 10 + "x\n" + "1," * 10 + "y\n"), "line 1: could not convert"),
    (lambda p: _text(p, "\n".join(["3" + ",0.1" * 10] * 2)), "has two rows for image '3'"),
    (lambda p: p.with_suffix(".npy"), "does not exist"),
    (lambda p: _text(p, "", ".txt"), "not .txt"),
    (lambda p: _text(p, "abc", ".npy"), "is not an array of numpy"),
    (lambda p: _npy_of_shape(p, (2**70, 10)), "is not an array of numpy"),
    (lambda p: _npy_of_shape(p, (2**40, 10)), "is not an array of numpy"),
]


def _npy_of_shape(path: Path, shape: tuple[int, ...]) -> Path:
    """A file whose header alone claims that shape."""
    with path.with_suffix(".npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "<f4"})
    return path.with_suffix(".npy")


def _text(path: Path, text: str, kind: str = ".csv") -> Path:
    path.with_suffix(kind).write_text(text)
    return path.with_suffix(kind)


@pytest.mark.parametrize(("write", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(
    write: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "given")
    with pytest.raises(DataError, match=said) as refused:
        distill(config(tmp_path), TeacherSource(probabilities=file), output=tmp_path / "store", tell=silent)
    assert "\n" not in str(refused.value)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    file = _text(tmp_path / "given", "", ".parquet")
    with pytest.raises(DataError, match="pip install pyarrow"):
        distill(config(tmp_path), TeacherSource(probabilities=file), output=tmp_path / "store", tell=silent)


@pytest.mark.parametrize(
    "source", [TeacherSource(), TeacherSource("runs/a", Path("b.npy")), TeacherSource(probabilities=Path("a"), views=2)]
)
def test_one_teacher_is_asked_for(source: TeacherSource, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        distill(config(tmp_path), source, output=tmp_path / "store", tell=silent)
    with pytest.raises(ConfigError, match="needs --output"):
        distill(config(tmp_path), TeacherSource("runs/a"), tell=silent)


def test_a_users_pictures_are_called_by_their_paths(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("labelled/cat/1.png", "labelled/dog/1.png", "unlabelled/x/2.png", "test/cat/3.png", "test/dog/3.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(tmp_path / "data" / name)
    file = _text(tmp_path / "given", "unlabelled/x/2.png,0.25,0.75\nlabelled/dog/1.png,0,1\nlabelled/cat/1.png,1,0\n")
    asked = {"data.source": "folder", "data.root": str(tmp_path / "data"), "data.labels": 0, "data.validation": 0}
    distill(config(tmp_path, **asked), TeacherSource(probabilities=file), output=tmp_path / "store", tell=silent)
    found = open_store(tmp_path / "store").probabilities(np.arange(3))
    np.testing.assert_array_equal(found, [[1, 0], [0, 1], [0.25, 0.75]])
