"""Computes the features of a frozen network over all images of a run, once, and stores them (`data.stores.features`).

Features are what the classifier of a network gets: its input in evaluation mode.
"""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastmpl.config import Config
from fastmpl.data.build import Data
from fastmpl.data.build import build as build_data
from fastmpl.data.errors import DataError
from fastmpl.data.evaluation import framing_of
from fastmpl.data.memory.evaluation_set import EvaluationSet
from fastmpl.data.stores.feature_writer import FeatureWriter
from fastmpl.data.stores.features import FeaturePlan, Rows
from fastmpl.errors import ConfigError
from fastmpl.models import build_network
from fastmpl.models.pretrained import classifier_of
from fastmpl.run.input_constants import normalisation_of
from fastmpl.run.pretrained import read_start

IMAGES = 256  # a pass


class FrozenNetwork(NamedTuple):
    """A network without its classifier, and how it is told from others.

    body: images to features [n, F]. whole: the same network with its classifier, of which `body` shares the tensors.
    """

    whole: nn.Module
    body: nn.Module
    classifier: str
    features: int
    name: str
    remarks: tuple[str, ...]


class NetworkWithout(nn.Module):
    """A network up to its classifier: the input of the layer of that name."""

    def __init__(self, network: nn.Module, classifier: str) -> None:
        super().__init__()
        self.network, self.classifier = network, classifier

    def forward(self, images: Tensor) -> Tensor:
        found: list[Tensor] = []
        layer = self.network.get_submodule(self.classifier)
        handle = layer.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
        try:
            self.network(images)
        finally:
            handle.remove()
        return found[0]


def load_frozen(config: Config, data: Data) -> FrozenNetwork:
    """The student's pretrained network, in evaluation mode, on the CPU.

    Raises ConfigError where the configuration names no weights, or a network without a linear classifier.
    """
    section = config.student.model_copy(update={"adapter": ""})
    if not section.pretrained:
        raise ConfigError(
            "fastmpl probe needs student.pretrained, the weights whose features are probed: a .safetensors or .pth file, a "
            'folder of timm, a run, or "hub".'
        )
    if data.normalisation is None:
        raise ConfigError("fastmpl probe needs images: leave data.features out, and name a source of pictures.")
    start = read_start(section.pretrained, "student", data.classes)
    said: list[str] = []
    whole = build_network(
        section,
        classes=len(data.classes),
        image_shape=data.image_shape,
        seed=0,
        weights=start.weights,
        note=said.append,
    ).eval()
    classifier = classifier_of(whole)
    layer = whole.get_submodule(classifier)
    if not isinstance(layer, nn.Linear) or layer.out_features != len(data.classes):
        raise ConfigError(f'student.model = "{section.model}" does not end in a linear layer: probe another network.')
    digest = f" ({start.sha256[:16]})" if start.sha256 else ""
    seen = f"{'x'.join(map(str, data.image_shape))} by {data.normalisation}, {framing_of(config.data)}"
    name = f"{section.model} from {start.weights.source}{digest} on images {seen}"
    body = NetworkWithout(whole, classifier)
    return FrozenNetwork(whole, body, classifier, layer.in_features, name, (*start.remarks, *said))


@contextmanager
def _wait_for_turn(folder: Path) -> Iterator[None]:
    """Lets one process at a time write the store in `folder`; the next finds what it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def store_features(
    network: FrozenNetwork, data: Data, folder: Path, *, views: int, device: torch.device, tell: Callable[[str], None]
) -> None:
    """Writes what is missing of the features of all training and test images.

    views: weak and strong views stored of each training image, besides the image as it is evaluated; 0: none.
    Raises DataError where an image cannot be read, a feature is not finite, or the folder holds other features.
    """
    plan = FeaturePlan(
        train=len(data.truth),
        test=0 if data.test is None or data.is_transductive else len(data.test),
        features=network.features,
        views=views,
        images=data.images_digest,
        network=network.name,
    )
    with _wait_for_turn(folder):
        _write_missing(FeatureWriter(folder, plan), network.body.to(device), data, device, tell)
    network.body.to("cpu")


def _write_missing(
    writer: FeatureWriter, body: nn.Module, data: Data, device: torch.device, tell: Callable[[str], None]
) -> None:
    missing, views = list(writer.missing()), writer.plan.views
    for done, (table, first, end) in enumerate(missing, 1):
        if table == "views":
            writer.write(table, first, end, [_infer_views(body, data, first, end, views, device)])
        else:
            held = data.examples(np.arange(first, end)) if table == "centre" else data.test
            assert held is not None
            writer.write(table, first, end, _infer_in_order(body, held, first if table == "test" else 0, end, device))
        tell(f"{writer.folder}: {done} of {len(missing)} shards of features written")
    writer.finish()


@torch.no_grad()
def _infer(body: nn.Module, images: Tensor, device: torch.device) -> Rows:
    features = body(images.to(device).float())
    if features.ndim != 2:
        raise ConfigError(
            f"The classifier of this network gets features of shape {list(features.shape[1:])}, and a probe needs a vector."
        )
    return np.asarray(features.float().cpu().numpy(), np.float32)


def _infer_in_order(body: nn.Module, held: EvaluationSet, first: int, end: int, device: torch.device) -> Iterator[Rows]:
    """Features of images `first` to `end` - 1 of an evaluation set."""
    place = 0
    for images, _ in held.batches(device):
        wanted = images[max(first - place, 0) : max(end - place, 0)]
        place += len(images)
        for part in torch.split(wanted, IMAGES):
            if len(part):
                yield _infer(body, part, device)


def _infer_views(body: nn.Module, data: Data, first: int, end: int, views: int, device: torch.device) -> Rows:
    """Features [n, 2V, F] of weak and strong views, drawn by image and epoch: the same whoever writes the shard."""
    count = end - first
    batch, left = min(IMAGES, count), views * count
    stream, seen, rows = data.view_pairs(np.arange(first, end), batch), np.zeros(count, np.int64), None
    while left > 0:
        given = stream.next()
        if given.replaced:
            raise DataError(
                f"{len(given.replaced)} images cannot be read, and a store has a row for each: run `fastmpl check`, and "
                "they are left out."
            )
        assert given.strong is not None
        place = given.index.cpu().numpy()[:left] - first  # the last batch may reach into the next epoch
        for offset, images in ((0, given.weak), (views, given.strong)):
            found = _infer(body, images, device)[:left]
            rows = np.empty((count, 2 * views, found.shape[1]), np.float32) if rows is None else rows
            for k, image in enumerate(place):
                rows[image, offset + seen[image] + int((place[:k] == image).sum())] = found[k]
        np.add.at(seen, place, 1)
        left -= batch
    assert rows is not None
    return rows


def data_of_images(config: Config) -> Data:
    """The run's data, decoded images and all, without what a run decides later: stored features and distributions."""
    without = {"features": "", "store": "", "filter_store": "", "minimum_confidence": 0.0, "per_class": 0}
    return build_data(
        config.data.model_copy(update=without),
        seed=config.run.seed,
        channels_last=config.system.channels_last,
        threads=torch.get_num_threads(),
        normalisation=normalisation_of(config.student, config.data.channels),
    )
