"""`fastmpl export`: each form computes what torch computes, at any batch size, and says how it is fed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

from fastmpl.commands.export import FACTS, Form, Wanted, export
from fastmpl.config import load
from fastmpl.errors import ConfigError
from fastmpl.run.classifier import load_classifier
from fastmpl.run.trainer import train

CONFIGS = Path(__file__).parents[2] / "launch" / "configs"


def train_run(folder: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {"run.output": str(folder), "run.steps": 2, "student.width": 8}
    train(load(CONFIGS / "digits_supervised.toml", settings | changes), quiet=True, report=False)
    return folder / "digits_supervised"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def timm_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    names = ("test_vit", "test_convnext")
    changes = [{"student.model": f"timm:{name}", "data.image_size": 32} for name in names]
    return [train_run(tmp_path_factory.mktemp(name), **one) for name, one in zip(names, changes, strict=True)]


def read_differences(remarks: Sequence[str]) -> list[float]:
    """The largest differences from torch that an export has told."""
    return [float(remark.split("at most ")[1].split(" on ")[0]) for remark in remarks]


GRAPHS: list[tuple[Form, bool, bool]] = [
    (form, *put) for form in ("onnx", "pt2") for put in ((False, False), (True, True))
]


@pytest.mark.parametrize(("form", "preprocess", "softmax"), [*GRAPHS, ("safetensors", False, False)])
def test_a_file_computes_what_torch_computes(
    run: Path, form: Form, preprocess: bool, softmax: bool, tmp_path: Path
) -> None:
    wanted = Wanted(form, tmp_path / f"student.{form}", preprocess, softmax, verify=True)
    found = export(run, wanted)
    assert found.path.is_file()
    network, *compared = found.remarks
    assert network.startswith("It holds the ")
    differences = read_differences(compared)
    assert len(differences) == 2 and max(differences) < 1e-5
    assert all("validation images" in remark for remark in compared)


@pytest.mark.parametrize("form", ["onnx", "pt2", "timm"])
def test_transformers_and_convnexts_are_exported_too(timm_runs: list[Path], form: Form, tmp_path: Path) -> None:
    for number, run in enumerate(timm_runs):
        found = export(run, Wanted(form, tmp_path / f"{number}.{form}", verify=True))
        assert max(read_differences(found.remarks[1:])) < 1e-5


def test_the_comparison_fails_where_a_file_computes_something_else(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastmpl.commands import export as module
    from fastmpl.errors import StorageError

    right = module._run_with
    monkeypatch.setattr(module, "_run_with", lambda network: lambda images: right(network)(images) + len(images))
    monkeypatch.setattr(module, "LARGEST_DIFFERENCE", 1e-4)
    with pytest.raises(StorageError, match="something else than torch"):
        export(run, Wanted("onnx", tmp_path / "s.onnx", verify=True))


def test_the_metadata_says_classes_and_normalisation(run: Path, tmp_path: Path) -> None:
    import onnx

    student = load_classifier(run)
    export(run, Wanted("onnx", tmp_path / "s.onnx"))
    onnx_facts = {entry.key: entry.value for entry in onnx.load(tmp_path / "s.onnx").metadata_props}
    export(run, Wanted("pt2", tmp_path / "s.pt2"))
    extra = {FACTS: ""}
    torch.export.load(tmp_path / "s.pt2", extra_files=extra)
    export(run, Wanted("safetensors", tmp_path / "s.safetensors"))
    with safetensors.safe_open(tmp_path / "s.safetensors", "pt") as file:
        weights_facts = file.metadata()
    for facts in (onnx_facts, json.loads(extra[FACTS]), weights_facts):
        assert tuple(json.loads(facts["classes"])) == student.classes
        assert student.normalisation is not None
        assert tuple(json.loads(facts["mean"])) == student.normalisation.mean


def test_a_graph_with_preprocessing_takes_pixels(run: Path, tmp_path: Path) -> None:
    import onnxruntime

    student = load_classifier(run)
    assert student.normalisation is not None
    export(run, Wanted("onnx", tmp_path / "s.onnx", preprocess=True, softmax=True))
    pixels = np.random.default_rng(0).integers(0, 256, (3, *student.image_shape)).astype(np.float32)
    mean, std = (np.array(part, dtype=np.float32)[:, None, None] for part in student.normalisation)
    with torch.no_grad():
        expected = student.module(torch.from_numpy((pixels - mean) / std)).softmax(-1).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": pixels})[0], expected, atol=1e-5)


def test_plain_timm_loads_the_folder_with_its_names(timm_runs: list[Path], tmp_path: Path) -> None:
    import timm

    export(timm_runs[0], Wanted("timm", tmp_path / "vit"))
    network = timm.create_model(f"local-dir:{tmp_path / 'vit'}", pretrained=True)
    assert network.pretrained_cfg["label_names"] == list("0123456789")
    assert "| student | test |" in (tmp_path / "vit" / "README.md").read_text()


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (Wanted("timm"), "is for networks of timm"),
        (Wanted("safetensors", preprocess=True), "holds weights and no graph"),
    ],
)
def test_what_a_student_cannot_be_is_refused(run: Path, wanted: Wanted, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        export(run, wanted)
