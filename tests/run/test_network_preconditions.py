"""What is known of networks and labels before the first step is refused then, by `check` and by training alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastmpl import cli
from fastmpl.config import Config, load
from fastmpl.errors import ConfigError
from fastmpl.learners.layers import number_layers
from fastmpl.models import build, zoo
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


def test_a_layer_with_two_names_is_refused_where_shards_are_gathered_by_name() -> None:
    coat = {"teacher__model": "timm:coat_lite_mini", "system__engine": "zero", "teacher__optimiser": "adamw"}
    shape = {"classes": 10, "image_shape": (3, 32, 32), "every": False}
    with pytest.raises(ModelError, match=r"uses a layer twice .* Use zero_stage = 2") as refused:
        require_networks(config(**coat, system__zero_stage=3), **shape)  # type: ignore[arg-type]
    assert 'teacher.model = "timm:coat_lite_mini"' in str(refused.value)
    require_networks(config(**coat, system__zero_stage=2), **shape)  # type: ignore[arg-type]
    require_networks(config(student__model="conv", **coat | {"teacher__model": "conv"}, system__zero_stage=3), **shape)  # type: ignore[arg-type]


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


class Doubled(torch.autograd.Function):
    """A function with a backward pass and no forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


@torch.library.custom_op("fastmpl_tests::tripled", mutates_args=())
def tripled(x: Tensor) -> Tensor:
    return 3 * x


tripled.register_fake(torch.empty_like)
tripled.register_autograd(lambda ctx, gradient: 3 * gradient)


class Refusing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(x)  # type: ignore[no-any-return]


class Losing(nn.Module):
    """Its tangent is that of the other summand alone, and nothing raises."""

    def forward(self, x: Tensor) -> Tensor:
        return x + tripled(x)


def plant(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network of timm has this layer behind its first block."""
    honest = zoo._create

    def create(name: str, options: dict[str, object]) -> nn.Module:
        network = honest(name, options)
        network.blocks[1].append(layer)
        return network

    monkeypatch.setattr(zoo, "_create", create)


PLANTED = {"student__model": "timm:test_efficientnet", "feedback__kind": "exact"}


@pytest.mark.parametrize("every", [True, False], ids=["check", "start"])
@pytest.mark.parametrize(
    ("layer", "reason"), [(Refusing(), "jvp"), (Losing(), "loses the tangent")], ids=["raises", "silent"]
)
def test_a_layer_without_forward_mode_is_refused_by_name_before_the_first_step(
    layer: nn.Module, reason: str, every: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(layer, monkeypatch)
    asked = config(method__name="mpl", **PLANTED)
    with pytest.raises(ModelError) as refused:
        require_networks(asked, classes=10, image_shape=(3, 32, 32), every=every)
    sentence = str(refused.value)
    assert f"layer blocks.1.1 ({type(layer).__name__}) has no forward mode" in sentence and reason in sentence
    assert 'feedback.tangent = "difference"' in sentence


@pytest.mark.parametrize(
    "changes",
    [
        {"feedback__tangent": "difference"},
        {"feedback__depth": 2},
        {"feedback__kind": "scalar", "method__targets": "sampled"},
        {"student__freeze": 3},
    ],
    ids=str,
)
def test_a_layer_that_no_tangent_passes_may_lack_forward_mode(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(Refusing(), monkeypatch)
    require_networks(config(method__name="mpl", **(PLANTED | changes)), classes=10, image_shape=(3, 32, 32))


@pytest.mark.parametrize("model", ["timm:test_vit", "timm:test_convnext", "timm:test_efficientnet", "timm:test_resnet"])
def test_a_network_with_forward_mode_is_not_refused(model: str) -> None:
    asked = config(method__name="mpl", student__model=model, student__optimiser="adamw", feedback__kind="exact")
    require_networks(asked, classes=10, image_shape=(3, 32, 32))


def test_more_frozen_layers_than_there_are_is_refused_with_their_number() -> None:
    with pytest.raises(ModelError, match=r"student.freeze = 9: this network has 5 layers, .* Use at most 4, or -1"):
        require_networks(config(student__model="perceptron", student__freeze=9), classes=10, image_shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("conv", ["blocks.0", "blocks.1", "blocks.2", "classifier"]),
        ("perceptron", ["blocks.0", "blocks.1", "classifier"]),
        ("wrn_10_1", ["stem", "blocks.0", "blocks.1", "blocks.2", "norm", "classifier"]),
    ],
)
def test_a_block_and_its_norms_are_one_layer(model: str, layers: list[str]) -> None:
    network = build(model, classes=10, image_shape=(3, 8, 8), dropout=0, norm="batch", width=16, depth=3, seed=0)
    for name, number in number_layers(network).items():
        assert name.startswith(f"{layers[number]}."), name


def test_what_is_frozen_is_remarked() -> None:
    asked = config(student__model="timm:test_vit", student__optimiser="adamw", student__freeze=-1)
    remarks = require_networks(asked, classes=10, image_shape=(3, 32, 32))
    assert any(r.startswith("student.freeze = -1 holds 300,096 of its 300,746") for r in remarks), remarks
