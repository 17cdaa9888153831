"""A teacher that does not learn sees its own normalisation and size, and its classes are mapped by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from fastmpl.config import load, save
from fastmpl.data.errors import DataError
from fastmpl.data.normalise import LUMINANCE, Normalisation, centre_view
from fastmpl.errors import ConfigError
from fastmpl.models import build_network
from fastmpl.run.build import single_network_method
from fastmpl.run.classifier import load_classifier
from fastmpl.run.fixed_teacher import Target, load_fixed_teacher
from fastmpl.run.student_file import FileFacts, save_network
from tests.run.short_runs import CONFIGS

OWN = Normalisation((100.0, 120.0, 140.0), (30.0, 40.0, 50.0))
DATA = Normalisation((200.0, 90.0, 10.0), (20.0, 80.0, 60.0))
SHAPE = (3, 8, 8)


def save_run(folder: Path, classes: tuple[str, ...], channels: int = 3, normalisation: Normalisation = OWN) -> Path:
    """The folder of a finished run of a small network."""
    folder.mkdir()
    shape = (channels, *SHAPE[1:])
    config = load(CONFIGS / "digits.toml", {"student.model": "conv", "student.width": 8})
    save(config, folder / "config.toml")
    weights = build_network(config.student, classes=len(classes), image_shape=shape, seed=0).state_dict()
    save_network(folder, weights, FileFacts(classes, shape, normalisation))
    return folder


def pictures(count: int = 6, size: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


@torch.no_grad()
def test_a_run_sees_its_own_normalisation_whatever_that_of_the_data(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "teacher", ("cat", "dog"))
    teacher = load_fixed_teacher(str(folder), Target(("cat", "dog"), SHAPE, DATA))
    expected = load_classifier(folder).module(centre_view(pictures(), 8, OWN))
    torch.testing.assert_close(teacher.module(centre_view(pictures(), 8, DATA)), expected, rtol=1e-4, atol=1e-5)
    assert any("normalisation that it was trained with" in remark for remark in teacher.remarks)


@torch.no_grad()
def test_a_run_on_the_same_data_gives_the_same_bits(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "teacher", ("cat", "dog"))
    teacher, images = load_fixed_teacher(str(folder), Target(("cat", "dog"), SHAPE, OWN)), torch.randn(4, *SHAPE)
    assert torch.equal(teacher.module(images), load_classifier(folder).module(images))
    assert teacher.remarks == ()


@torch.no_grad()
def test_images_in_bfloat16_reach_a_float32_network(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "teacher", ("cat", "dog"))
    teacher = load_fixed_teacher(str(folder), Target(("cat", "dog"), SHAPE, OWN))
    assert teacher.module(torch.randn(4, *SHAPE).bfloat16()).dtype == torch.float32


@torch.no_grad()
def test_the_same_classes_in_another_order_are_mapped_by_name(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "teacher", ("ant", "bee", "cat"))
    teacher, images = load_fixed_teacher(str(folder), Target(("cat", "ant", "bee"), SHAPE, OWN)), torch.randn(4, *SHAPE)
    expected = load_classifier(folder).module(images)[:, [2, 0, 1]]
    assert torch.equal(teacher.module(images), expected)
    assert any("mapped by class name" in remark for remark in teacher.remarks)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_a_run_sees_its_own_size_and_channels(channels: int, tmp_path: Path) -> None:
    """A teacher of grey or coloured images of 8 pixels, on data of the other kind and of 16 pixels."""
    own, data = Normalisation((100.0,) * channels, (50.0,) * channels), DATA
    folder = save_run(tmp_path / "teacher", ("cat", "dog"), channels=channels, normalisation=own)
    if channels == 3:  # grey data
        data = Normalisation((30.0,), (60.0,))
    teacher = load_fixed_teacher(str(folder), Target(("cat", "dog"), (4 - channels, 16, 16), data))
    large = pictures(size=8).repeat(2, axis=1).repeat(2, axis=2)  # so that a resize gives the small ones again
    if channels == 3:
        large = large[..., :1].repeat(3, axis=3)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(large).permute(0, 3, 1, 2).float(), (8, 8), mode="bilinear", antialias=True
    )
    grey = (small * torch.tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)
    expected = load_classifier(folder).module(((grey if channels == 1 else small) - 100) / 50)
    torch.testing.assert_close(teacher.module(centre_view(large, 16, data)), expected, rtol=2e-2, atol=2e-2)
    assert any("8 x 8 pixels" in remark for remark in teacher.remarks)


def test_a_teacher_of_points_is_refused_on_images(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "teacher", ("cat", "dog"))
    with pytest.raises(ConfigError, match="name a teacher of the same kind of data"):
        load_fixed_teacher(str(folder), Target(("cat", "dog"), (2,), None))


def test_other_classes_of_the_same_number_are_refused_by_name(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "teacher", ("cat", "dog"))
    with pytest.raises(DataError, match=r"lacks 'kitten' and it adds 'cat'"):
        load_fixed_teacher(str(folder), Target(("dog", "kitten"), SHAPE, OWN))


def test_class_names_are_read_back_whatever_they_hold(tmp_path: Path) -> None:
    names = ("[1]", 'a "quoted" name', "猫", "two words")
    assert load_classifier(save_run(tmp_path / "teacher", names)).classes == names


class Pretrained(nn.Module):
    """A network as timm gives it: trained on 6 x 6 images with constants in [0, 1]."""

    num_classes = 2

    def __init__(self, **config: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * 6 * 6, 2)
        self.pretrained_cfg = {
            "input_size": (3, 6, 6), "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3), "label_names": ["bee", "ant"],
        } | config  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(images.flatten(1))
        return result


@torch.no_grad()
def test_a_network_of_timm_sees_its_own_constants_and_size_and_keeps_its_class_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: Pretrained() if pretrained else None)
    teacher = load_fixed_teacher("timm:any", Target(("ant", "bee"), SHAPE, DATA))
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(pictures()).permute(0, 3, 1, 2).float(), (6, 6), mode="bilinear", antialias=True
    )
    mean, std = (torch.tensor(Pretrained().pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    expected = Pretrained()((resized / 255 - mean) / std)[:, [1, 0]]
    torch.testing.assert_close(teacher.module(centre_view(pictures(), 8, DATA)), expected, rtol=1e-4, atol=1e-4)
    assert any("6 x 6 pixels" in remark for remark in teacher.remarks)


def test_a_network_of_timm_that_names_no_classes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: Pretrained(label_names=None))
    remarks = load_fixed_teacher("timm:any", Target(("ant", "bee"), SHAPE, DATA)).remarks
    assert any("in the order of the data's classes" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(("a", "b", "c"), SHAPE, DATA), "has 2 classes; the data has 3"),
        (Target(("ant", "bee"), (2,), None), "the data are points"),
    ],
)
def test_a_network_of_timm_that_cannot_label_the_data_is_refused(
    target: Target, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: Pretrained())
    with pytest.raises(ConfigError, match=words):
        load_fixed_teacher("timm:any", target)


@pytest.mark.parametrize(("model", "labeller"), [("conv", "self"), ("timm:resnet18", "fixed"), ("runs/x", "fixed")])
def test_pseudo_labels_are_those_of_the_teacher_that_is_named(model: str, labeller: str) -> None:
    config = load(CONFIGS / "digits_pseudo_label.toml", {"teacher.model": model})
    assert single_network_method(config).labeller == labeller
