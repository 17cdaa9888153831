"""A pretrained network sees images as it was trained to: in training, in evaluation, in prediction and once exported."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import timm
import torch
from PIL import Image

from fastmpl.commands.evaluate import evaluate
from fastmpl.commands.export import Wanted, describe, export
from fastmpl.commands.predict import predict
from fastmpl.config import Config, difference, load, save
from fastmpl.data.normalise import IMAGENET, Normalisation, centre_view
from fastmpl.distributed.ranks import ALONE
from fastmpl.errors import ConfigError
from fastmpl.models.input_map import map_inputs
from fastmpl.run import checkpoint
from fastmpl.run.build import Trainee, assemble
from fastmpl.run.checkpoint import Checkpoint
from fastmpl.run.classifier import load_classifier
from fastmpl.run.expected_inputs import describe_inputs, settle_inputs
from fastmpl.run.input_constants import normalisation_of
from fastmpl.run.student_file import student_facts
from fastmpl.run.trainer import train
from tests.pictures import COLOURS
from tests.run.short_runs import CONFIGS

SIDE = 32
HALF = Normalisation((127.5,) * 3, (127.5,) * 3)  # 0.5 of 255
OF_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def timm_folder(folder: Path, name: str, **cfg: Any) -> Path:
    """A folder in timm's form, whose config.json has `cfg` as its pretrained_cfg."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5, **({"img_size": SIDE} if name == "test_vit" else {}))
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    known = {"input_size": [3, SIDE, SIDE], "num_classes": 5, **cfg}
    (folder / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": known}))
    return folder


def supervised(**changes: Any) -> Config:
    return load(CONFIGS / "fashion_mnist_500.toml", {"method.name": "supervised", "feedback.kind": "off"} | changes)


def without_size(folder: Path, **changes: Any) -> Config:
    """A configuration whose file does not say a size."""
    lines = (CONFIGS / "digits_supervised.toml").read_text().splitlines()
    file = folder / "config_without_size.toml"
    file.write_text("\n".join(line for line in lines if not line.startswith("image_size")))
    return load(file, changes)


def test_a_file_of_a_timm_network_is_shown_what_timm_knows_of_that_network(tmp_path: Path) -> None:
    given = {"student.model": "timm:test_vit", "student.pretrained": str(tmp_path / "w.safetensors")}
    settled = settle_inputs(without_size(tmp_path, **given))
    assert (settled.data.image_size, settled.data.centre_crop, settled.data.interpolation) == (160, 0.95, "bicubic")
    assert normalisation_of(settled.student, 3) == HALF
    assert settle_inputs(settled) == settled
    assert "160 x 160 pixels, normalised by mean 0.5 0.5 0.5" in describe_inputs(settled)[0]


def test_keys_that_are_given_win(tmp_path: Path) -> None:
    given = {
        "student.model": "timm:test_vit",
        "student.pretrained": "hub",
        "data.image_size": 64,
        "data.centre_crop": 0.5,
        "data.interpolation": "bilinear",
        "student.mean": (0.1, 0.2, 0.3),
        "student.std": (0.4, 0.5, 0.6),
    }
    config = load(CONFIGS / "digits_supervised.toml", given)
    assert settle_inputs(config) == config


def test_a_configuration_without_pretrained_weights_stays_as_it_is(tmp_path: Path) -> None:
    config = load(CONFIGS / "digits.toml")
    assert settle_inputs(config) is config
    assert config.data.image_size == 8 and normalisation_of(config.student, 3) is None
    assert settle_inputs(supervised(**{"data.image_size": 0})).data.image_size == 28


def test_a_folder_of_timm_says_its_own(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "w", "test_resnet", crop_pct=0.9, interpolation="bilinear", **OF_IMAGENET)
    config = without_size(tmp_path, **{"student.model": "timm:test_resnet", "student.pretrained": str(folder)})
    settled = settle_inputs(config)
    assert (settled.data.image_size, settled.data.centre_crop, settled.data.interpolation) == (SIDE, 0.9, "bilinear")
    np.testing.assert_allclose(normalisation_of(settled.student, 3), IMAGENET, rtol=1e-12)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        settle_inputs(config)


def test_a_grey_input_has_the_mean_of_the_three_constants(tmp_path: Path) -> None:
    given = {"data.channels": 1, "student.mean": (0.1, 0.2, 0.3), "student.std": (0.2, 0.4, 0.6)}
    student = load(CONFIGS / "digits_supervised.toml", given).student
    np.testing.assert_allclose(normalisation_of(student, 1), ((51.0,), (102.0,)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student.mean": (0.5, 0.5, 0.5)}, "set three deviations above 0"),
        ({"teacher.std": (0.5, 0.5, 0.5)}, "teacher.std is for a network that learns"),
    ],
)
def test_constants_that_nothing_uses_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(CONFIGS / "digits_supervised.toml", changes)


def two_networks(folder: Path, **changes: Any) -> Config:
    """A ViT that was trained with constants of 0.5 teaches a ConvNeXt that was trained with ImageNet's."""
    vit = timm_folder(folder / "vit", "test_vit", mean=[0.5] * 3, std=[0.5] * 3)
    convnext = timm_folder(folder / "convnext", "test_convnext", **OF_IMAGENET)
    given = {
        "teacher.model": "timm:test_vit",
        "teacher.pretrained": str(vit),
        "student.model": "timm:test_convnext",
        "student.pretrained": str(convnext),
        "data.image_size": SIDE,
        "data.batch_unlabelled": 16,
    }
    return settle_inputs(load(CONFIGS / "digits.toml", given | changes))


def build_both(config: Config) -> Trainee:
    return assemble(
        config,
        classes=10,
        image_shape=(3, SIDE, SIDE),
        device=torch.device("cpu"),
        fixed_teacher=torch.nn.Identity,
        normalisation=normalisation_of(config.student, 3),
    )


@torch.no_grad()
def test_the_teacher_sees_its_own_constants_in_batches_of_the_student(tmp_path: Path) -> None:
    config = two_networks(tmp_path)
    both = build_both(config)
    assert both.teacher is not None
    pixels = torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).float()
    batch, own = (
        (pixels - mean) / std
        for mean, std in (
            (torch.tensor(part)[:, None, None] for part in constants)
            for constants in (normalisation_of(config.student, 3), normalisation_of(config.teacher, 3))  # type: ignore[union-attr]
        )
    )
    plain = build_both(
        config.model_copy(update={"teacher": config.teacher.model_copy(update={"std": (0.0, 0.0, 0.0)})})
    )
    assert plain.teacher is not None
    torch.testing.assert_close(both.teacher.infer(batch), plain.teacher.infer(own), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both.teacher.infer(batch), plain.teacher.infer(batch), atol=1e-2)
    assert torch.equal(both.student.infer(batch), plain.student.infer(batch))
    assert both.parts().state().keys() == plain.parts().state().keys()  # the constants are not in a checkpoint


@torch.no_grad()
def test_the_teacher_in_a_checkpoint_is_read_with_its_own_constants(tmp_path: Path) -> None:
    config = two_networks(tmp_path)
    both, classes, shape = build_both(config), tuple("0123456789"), (3, SIDE, SIDE)
    assert both.teacher is not None
    facts = {"student": student_facts(classes, shape, normalisation_of(config.student, 3))}
    none: frozenset[str] = frozenset()
    checkpoint.save(tmp_path / "checkpoints", Checkpoint(1, both.parts().state(), facts, none, none), ALONE)
    save(config, tmp_path / "config.toml")
    teacher, student = (load_classifier(tmp_path, name) for name in ("teacher", "last"))
    assert teacher.normalisation == HALF and student.normalisation == normalisation_of(config.student, 3)
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    given, own = (centre_view(pixels, SIDE, held.normalisation) for held in (student, teacher))  # type: ignore[arg-type]
    torch.testing.assert_close(teacher.infer(own), both.teacher.infer(given), rtol=1e-4, atol=1e-5)


def test_the_map_carries_a_tangent_and_keeps_float64() -> None:
    layer = torch.nn.Linear(2, 1).double()
    mapped = map_inputs(torch.nn.Sequential(torch.nn.Flatten(), layer), ((0.0,), (1.0,)), ((2.0,), (4.0,)))
    images = torch.randn(3, 1, 1, 2, dtype=torch.float64)
    parameters = dict(mapped.named_parameters())
    expected = torch.func.jvp(lambda x: layer((x.flatten(1) - 2) / 4), (images,), (images,))
    found = torch.func.jvp(lambda x: torch.func.functional_call(mapped, parameters, (x,)), (images,), (images,))
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def picture_folder(folder: Path) -> Path:
    """Square pictures, so that cropping them to the middle leaves them whole."""
    rng = np.random.default_rng(0)
    for part, count in (("labelled", 6), ("test", 6)):
        for name, colour in COLOURS.items():
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                noise = rng.normal(0, 60, (48, 48, 3)) + colour
                Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures that started from weights with constants of their own, whose folder is gone by now."""
    folder = tmp_path_factory.mktemp("start")
    weights = timm_folder(folder / "w", "test_vit", interpolation="bicubic", mean=[0.2, 0.4, 0.6], std=[0.1, 0.2, 0.3])
    settings = {
        "run.output": str(folder), "run.name": "run", "run.steps": 2, "data.source": "folder", "data.labels": 0,
        "data.root": str(picture_folder(folder / "pictures")), "data.validation": 0, "data.batch_labelled": 6,
        "student.model": "timm:test_vit", "student.pretrained": str(weights), "student.average": 0.0,
    }  # fmt: skip
    train(without_size(folder, **settings), quiet=True, report=False)
    shutil.rmtree(weights)
    return folder / "run"


def test_the_student_is_stored_with_its_inputs(run: Path) -> None:
    student = load_classifier(run)
    assert student.normalisation is not None and student.image_shape == (3, SIDE, SIDE)
    np.testing.assert_allclose(student.normalisation, ((51.0, 102.0, 153.0), (25.5, 51.0, 76.5)))
    with safetensors.safe_open(run / "student.safetensors", "pt") as file:
        facts = file.metadata()
    assert (facts["interpolation"], facts["centre_crop"]) == ("bicubic", "1.0")
    found = checkpoint.read_newest(run / "checkpoints", lambda line: None)
    assert found is not None and found.facts["student"]["interpolation"] == "bicubic"
    assert json.loads(describe(student, Wanted("onnx"))["interpolation"]) == "bicubic"


def test_a_run_goes_on_without_the_source_of_its_weights(run: Path) -> None:
    raw = load(run / "config.toml").model_dump()
    raw["student"] |= {"mean": (0.0,) * 3, "std": (0.0,) * 3}
    raw["data"] |= {"image_size": 0, "centre_crop": 0.0, "interpolation": "auto"}
    settled = settle_inputs(Config.model_validate(raw), run)
    assert difference(settled, load(run / "config.toml")) == []


def test_prediction_evaluation_and_timms_own_preprocessing_of_the_export_agree(run: Path, tmp_path: Path) -> None:
    folder = Path(load(run / "config.toml").data.root) / "test"
    predicted = list(predict(run, [folder]))
    right = np.mean([found.label == Path(found.file).parent.name for found in predicted])
    scores = evaluate(run).sets
    assert scores[-1].name == "test" and scores[-1].accuracy == pytest.approx(right)
    exported = export(run, Wanted("timm", tmp_path / "timm")).path
    network = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    images = torch.stack([transform(Image.open(found.file)) for found in predicted])
    with torch.no_grad():
        expected = network(images).softmax(-1).numpy()
    probabilities = np.array([list(found.probabilities.values()) for found in predicted])
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
