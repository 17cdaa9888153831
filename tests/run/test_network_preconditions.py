"""What is known of networks and labels before the first step is refused then, by `check` and by training alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmpl import cli
from fastmpl.config import Config, load
from fastmpl.errors import ConfigError
from fastmpl.models.errors import ModelError
from fastmpl.run.network_preconditions import require_label_of_each_class, require_networks

DIGITS = Path(__file__).parents[2] / "launch/configs/digits.toml"
VIT = "timm:vit_tiny_patch16_224"


def config(**changes: Any) -> Config:
    return load(DIGITS, {key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("changes", "side", "sentence"),
    [
        ({"student__model": "timm:nonsense"}, 32, "has no such network"),
        (
            {"student__model": VIT},
            30,
            "patches of 16 pixels, and data.image_size = 30 is no multiple of that. Use 16 or 32",
        ),
        ({"teacher__model": VIT}, 8, "cannot be used with images of 8 x 8 (data.image_size)"),
        ({"student__model": "timm:resnet10t", "data__batch_labelled": 1}, 32, "normalises over one value a channel"),
        ({"teacher__model": "timm:convnext_atto"}, 8, "cannot be used with images of 8 x 8"),
        ({"student__model": "wrn_28_2"}, 3, "needs images of at least 4 x 4 pixels"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_by_name(changes: dict[str, Any], side: int, sentence: str) -> None:
    role = next(iter(changes)).split("__")[0]
    for every in (True, False):
        if not every and side == 3:
            continue  # building it refuses it then
        with pytest.raises(ModelError, match=f"{role}.model = .*") as refused:
            require_networks(config(**changes), classes=10, image_shape=(3, side, side), every=every)
        assert sentence in str(refused.value)


def test_group_norm_and_two_images_have_values_to_normalise() -> None:
    one = {"student__model": "timm:resnet10t", "data__batch_labelled": 1}
    assert require_networks(config(**one, student__norm="group"), classes=10, image_shape=(3, 32, 32)) == []
    two = {**one, "data__batch_labelled": 2}
    assert require_networks(config(**two), classes=10, image_shape=(3, 32, 32)) == []
    with pytest.raises(ModelError, match="one value a channel"):
        require_networks(config(**two), classes=10, image_shape=(3, 32, 32), world=2)


def test_plain_sgd_at_a_large_rate_is_remarked_upon_for_transformers_alone() -> None:
    (remark,) = require_networks(config(student__model=VIT), classes=10, image_shape=(3, 32, 32))
    assert remark.startswith('student.optimiser = "sgd" with lr = 0.05: transformers seldom learn so.')
    adamw = config(student__model=VIT, student__optimiser="adamw", student__lr=1e-3)
    assert require_networks(adamw, classes=10, image_shape=(3, 32, 32)) == []
    assert require_networks(config(), classes=10, image_shape=(3, 8, 8)) == []


def test_a_class_without_a_label_is_named_unless_a_fixed_teacher_labels() -> None:
    classes, labels = ("cat", "dog", "fox"), np.array([0, 2, 2])
    with pytest.raises(ConfigError, match="no labelled image is left for dog"):
        require_label_of_each_class(config(data__labels=0), classes, labels)
    with pytest.raises(ConfigError, match=r"data.labels = 2 is fewer than the 3 classes, so that nothing .* of dog"):
        require_label_of_each_class(config(data__labels=2), classes, labels)
    fixed = {"method__name": "distillation", "teacher__model": "runs/large", "feedback__kind": "off"}
    require_label_of_each_class(config(data__labels=2, **fixed), classes, labels)
    require_label_of_each_class(config(data__labels=3), classes, np.array([0, 1, 2]))


@pytest.mark.parametrize("verb", ["check", "train"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--data.labels", "5"), "Config: data.labels = 5 is fewer than the 10 classes"),
        (("--student.model", "timm:nonsense"), 'Config: student.model = "timm:nonsense"'),
        (
            ("--student.model", "runs/digits"),
            'Config: student.model = "runs/digits" is no network; the folder of a run',
        ),
    ],
)
def test_check_and_train_refuse_alike_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, options: tuple[str, ...], sentence: str
) -> None:
    assert cli.main([verb, str(DIGITS), "--run.output", str(tmp_path), *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith(sentence) and len(err.splitlines()) == 1
