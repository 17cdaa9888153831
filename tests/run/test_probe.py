"""`fastmpl probe`, runs on stored features, and adapters in a run: each from a small network that was trained before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from fastmpl.analysis.planner.plan import shape_of
from fastmpl.commands.evaluate import evaluate
from fastmpl.config import Config, load
from fastmpl.data.build import build as build_data
from fastmpl.data.errors import DataError
from fastmpl.data.stores.features import Standardisation, measure_features, open_features
from fastmpl.errors import ConfigError
from fastmpl.run import features
from fastmpl.run.probe import MOMENTUM, Heads, fold_head, probe, train_heads
from tests.run.short_runs import CONFIGS, short_config, train_quietly


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose student is what the others start from."""
    folder = tmp_path_factory.mktemp("trained")
    train_quietly(short_config(folder, "digits_supervised", student__width=16, run__steps=80, data__labels=400))
    return folder / "small"


def from_trained(trained: Path, folder: Path, base: str = "digits_supervised", **changes: Any) -> Config:
    return short_config(
        folder, base, **({"student__width": 16, "student__pretrained": str(trained), "run__name": "new"} | changes)
    )


def test_heads_learn_as_autograd_and_torchs_sgd_do() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(6, 5, generator=generator), torch.arange(6) % 3) for _ in range(4)]
    rates = (0.1, 0.5)
    given = iter(batches)
    heads = train_heads(lambda: next(given), rates, features=5, classes=3, steps=4, weight_decay=0.01)
    for number, rate in enumerate(rates):
        weight, bias = torch.zeros(3, 5, requires_grad=True), torch.zeros(3, requires_grad=True)
        groups = [{"params": [weight], "weight_decay": 0.01}, {"params": [bias]}]
        optimiser = torch.optim.SGD(groups, rate, MOMENTUM, nesterov=True)
        for step, (images, targets) in enumerate(batches):
            for group in optimiser.param_groups:
                group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / 4))
            optimiser.zero_grad()
            F.cross_entropy(images @ weight.T + bias, targets).backward()
            optimiser.step()
        torch.testing.assert_close(heads.weight[number], weight.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(heads.bias[number], bias.detach(), rtol=1e-5, atol=1e-6)


def test_a_folded_head_takes_features_as_they_are() -> None:
    rows = np.random.default_rng(0).normal(5, 3, (40, 6)).astype(np.float32)
    standardise = measure_features(rows)
    weight, bias = torch.randn(4, 6), torch.randn(4)
    expected = Heads(weight[None], bias[None]).logits(torch.from_numpy(standardise.apply(rows)))[0]
    folded = fold_head(weight, bias, standardise)
    torch.testing.assert_close(F.linear(torch.from_numpy(rows), *folded), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(standardise, Standardisation)


def test_the_students_accuracy_is_that_of_the_chosen_rate(trained: Path, tmp_path: Path) -> None:
    config = from_trained(trained, tmp_path)
    found = probe(config, rates=(0.001, 0.03, 0.3), steps=60)
    best = found.scores[found.chosen]
    assert best.validation == max(score.validation for score in found.scores) > 0.2
    sets = evaluate(tmp_path / "new").sets
    assert {held.name: held.accuracy for held in sets} == pytest.approx(found.results.last["student"], abs=0.011)
    tensors = safetensors.torch.load_file(tmp_path / "new" / "student.safetensors")
    before = safetensors.torch.load_file(trained / "student.safetensors")
    differing = {name for name, value in tensors.items() if not torch.equal(value, before[name])}
    assert differing == {"classifier.weight", "classifier.bias"}


def test_features_are_computed_once_and_continue_after_an_interruption(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = from_trained(trained, tmp_path)
    calls: list[int] = []
    original = features._infer

    def interrupt(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(features, "_infer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        probe(config, rates=(0.1,), steps=2, views=2)
    first = probe(config, rates=(0.1,), steps=2, views=2)
    done = len(calls)
    assert probe(config, rates=(0.1,), steps=2, views=2).scores == first.scores
    assert len(calls) == done
    with pytest.raises(DataError, match="holds other features"):
        probe(config, rates=(0.1,), steps=2, views=3)


def test_stored_views_are_those_of_the_frozen_network(trained: Path, tmp_path: Path) -> None:
    """Each weak view is of its image: with augmentation off it is the image as it is evaluated."""
    still = {"data__shift": 0.0, "data__cutout": 0.0, "data__labels": 100}
    probe(from_trained(trained, tmp_path, **still), rates=(0.1,), steps=2, views=2)
    store = open_features(tmp_path / "new" / "features")
    assert store.views is not None and store.views.shape == (1297, 4, 16)
    for view in range(4):
        np.testing.assert_allclose(store.views[:, view], store.centre, rtol=1e-4, atol=1e-5)


def test_a_probe_needs_weights_and_a_way_to_choose(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs student\.pretrained"):
        probe(from_trained(trained, tmp_path, student__pretrained=""))
    with pytest.raises(ConfigError, match="chooses its rate on validation images"):
        probe(from_trained(trained, tmp_path, data__validation=0))
    with pytest.raises(ConfigError, match="--rates above 0"):
        probe(from_trained(trained, tmp_path), rates=(0.0,))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("views", [0, 2])
def test_meta_pseudo_labels_train_heads_on_stored_features(trained: Path, tmp_path: Path, views: int) -> None:
    probe(from_trained(trained, tmp_path), rates=(0.1,), steps=2, views=views)
    store = str(tmp_path / "new" / "features")
    heads = {"teacher__model": "linear", "student__model": "linear", "data__features": store, "run__steps": 60}
    config = short_config(tmp_path, run__name="heads", **heads)
    results = train_quietly(config)
    assert results.last["average"]["test"] > 0.3
    sets = evaluate(tmp_path / "heads").sets
    assert sets[-1].accuracy == results.headline["test"]
    images = short_config(tmp_path, run__name="images")
    of_features, of_images = (build_data(each.data, seed=0) for each in (config, images))
    for one, other in zip(of_features.split, of_images.split, strict=True):  # arms of a seed see the same images
        np.testing.assert_array_equal(one, other)
    batch, again = next(of_features.train), next(of_images.train)
    assert torch.equal(batch.unlabelled_index, again.unlabelled_index) and batch.weak.shape == (32, 16)
    assert torch.equal(batch.weak, batch.strong) == (views == 0)
    assert shape_of(config).image == (16,)


def test_features_of_other_images_and_networks_of_pictures_are_refused(trained: Path, tmp_path: Path) -> None:
    probe(from_trained(trained, tmp_path), rates=(0.1,), steps=2)
    store = str(tmp_path / "new" / "features")
    heads = {"teacher.model": "linear", "student.model": "linear", "data.features": store}
    with pytest.raises(ConfigError, match=r'teacher\.model = "conv": use "linear" or "perceptron"'):
        load(CONFIGS / "digits.toml", heads | {"teacher.model": "conv"})
    moons = load(CONFIGS / "two_moons.toml", {"data.features": store, "run.output": str(tmp_path)})
    with pytest.raises(DataError, match="made for other images"):
        train_quietly(moons)


def test_a_run_with_adapters_leaves_an_ordinary_student(trained: Path, tmp_path: Path) -> None:
    lora = {"adapter": "lora:2", "pretrained": str(trained), "width": 16}
    roles = {f"{role}__{key}": value for role in ("teacher", "student") for key, value in lora.items()}
    results = train_quietly(short_config(tmp_path, run__name="new", run__checkpoint_every=10, **roles))
    before = safetensors.torch.load_file(trained / "student.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "new" / "student.safetensors")
    assert tensors.keys() == before.keys()
    changed = {name for name, value in tensors.items() if not torch.equal(value, before[name])}
    assert {name for name in changed if "running" not in name and "tracked" not in name} == {
        *(f"blocks.{number}.0.weight" for number in range(3)),
        "classifier.weight",
        "classifier.bias",
    }
    for number in range(3):
        change = (tensors[f"blocks.{number}.0.weight"] - before[f"blocks.{number}.0.weight"]).flatten(1)
        assert int(torch.linalg.matrix_rank(change, rtol=1e-3)) <= 2
    sets = evaluate(tmp_path / "new").sets
    assert sets[-1].accuracy == pytest.approx(results.headline["test"], abs=0.003)
    (tmp_path / "new" / "student.safetensors").unlink()
    of_checkpoint = evaluate(tmp_path / "new").sets
    assert of_checkpoint[-1].accuracy == sets[-1].accuracy


def test_adapters_without_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"freezes the weights that student\.pretrained names"):
        load(CONFIGS / "digits.toml", {"student.adapter": "lora:4"})
    settings = {"student.adapter": "lora:4", "student.pretrained": "runs/x", "system.engine": "zero"}
    with pytest.raises(ConfigError, match="shards of a frozen network"):
        load(CONFIGS / "digits.toml", settings)
