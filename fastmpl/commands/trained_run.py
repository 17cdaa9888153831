"""A finished run in a Python program: its network, and what the verbs do with it. `fastmpl.load` makes one."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from fastmpl.commands.evaluate import SetScores, evaluate
from fastmpl.commands.export import Form, Wanted, export
from fastmpl.commands.predict import Prediction, list_images, predict_files, predict_pixels
from fastmpl.config import Config
from fastmpl.data.errors import DataError
from fastmpl.data.files.decode import to_pixels
from fastmpl.errors import ConfigError
from fastmpl.run.classifier import Classifier, load_classifier
from fastmpl.run.headline import NetworkName

Pixels = NDArray[np.uint8]  # [H, W, 3] or [N, H, W, 3]
OneImage = str | Path | Pixels | Image.Image
Images = OneImage | Iterable[OneImage]

ACCEPTED: Final = "Give paths, images of PIL, or arrays of RGB pixels: uint8 [H, W, 3]."


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A network of the run in `folder`; `network` is None for the one in student.safetensors."""

    folder: Path
    student: Classifier
    network: NetworkName | None = None

    def __repr__(self) -> str:
        """One line: the folder, which of the run's networks it is, and how many classes it knows."""
        return f"<fastmpl run {str(self.folder)!r}: {self.student.description}; {len(self.classes)} classes>"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the network's outputs."""
        return self.student.classes

    @property
    def module(self) -> nn.Module:
        """The network, in evaluation mode: normalised images [N, *image] to logits [N, K]."""
        return self.student.module

    @property
    def config(self) -> Config:
        """The configuration that the run was trained by."""
        return self.student.config

    def predict(self, images: Images) -> list[Prediction]:
        """The likeliest class of each image, its probability, and the probabilities of all classes, in order.

        images: files and folders of them, images of PIL, or uint8 arrays [H, W, 3] or [N, H, W, 3] of RGB pixels of any
        size; one, or several. A file that cannot be read has no label and says why. Raises DataError for a path that does
        not exist or what is none of these, ConfigError where the run classifies points.
        """
        if self.student.normalisation is None:
            raise ConfigError(f"{self.folder} classifies points, not images: call `module`.")
        given: Any = images
        alone = isinstance(given, str | Path | np.ndarray | Image.Image) or not isinstance(given, Iterable)
        several: Iterable[Any] = [given] if alone else given
        return list(chain.from_iterable(self._predict_one(one) for one in _group(several)))

    def _predict_one(self, group: list[Path] | Pixels) -> Iterable[Prediction]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if isinstance(group, list):
            return predict_files(self.student, list_images(group, lambda line: None), device)
        return predict_pixels(self.student, group, device)

    def evaluate(self, folder: str | Path | None = None) -> dict[str, SetScores]:
        """Accuracy, loss and confusion by set of images, as `fastmpl evaluate` has them.

        folder: labelled images as <class>/* or test/<class>/*; None: the run's own validation and test images.
        """
        found = evaluate(self.folder, None if folder is None else Path(folder), self.network)
        return {one.name: one for one in found.sets}

    def export(
        self,
        to: Form = "onnx",
        output: str | Path | None = None,
        *,
        preprocess: bool = False,
        softmax: bool = False,
        verify: bool = False,
    ) -> Path:
        """Writes the network for other programs, as `fastmpl export` does; gives the file or folder."""
        place = None if output is None else Path(output)
        return export(self.folder, Wanted(to, place, preprocess, softmax, verify, self.network)).path


def _group(images: Iterable[OneImage]) -> Iterable[list[Path] | Pixels]:
    """Neighbouring paths together, so that threads decode them; each array, and each image of PIL, by itself."""
    paths: list[Path] = []
    for one in images:
        if isinstance(one, str | Path):
            paths.append(Path(one))
            continue
        if paths:
            yield paths
            paths = []
        if not isinstance(one, np.ndarray | Image.Image):
            raise DataError(f"an object of type {type(one).__name__} is no image. {ACCEPTED}")
        yield to_pixels(one) if isinstance(one, Image.Image) else one
    if paths:
        yield paths


def load(run: str | Path, network: NetworkName | None = None) -> TrainedRun:
    """A network of the run in the folder `run`: of its newest checkpoint if it is not finished.

    network: None for the one in student.safetensors. Raises ConfigError if there is none.
    """
    return TrainedRun(Path(run), load_classifier(Path(run), network), network)
