"""Makes of the [data] section the arrays, the split, the labels to learn from and the normalisation constants.

All of it is the same on every rank. Views, batches and devices come later.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.dataset import UNKNOWN, Arrays, Images, digest, digest_of, select_images
from fastmpl.data.errors import DataError
from fastmpl.data.noise import add_noise
from fastmpl.data.normalise import IMAGENET, Normalisation, measure
from fastmpl.data.settings import DataSettings
from fastmpl.data.sources import load
from fastmpl.data.split import Split, split
from fastmpl.data.stores.confidence import select_confident
from fastmpl.data.stores.features import FeatureStore, measure_features, open_features
from fastmpl.data.stores.store import open_store

Word = int | float | str | list[int] | list[float]


class Prepared(NamedTuple):
    """A data set ready to be streamed. `normalisation` is None for points, which stay as they are.

    Where features are stored, they stand in `arrays` in the place of the images, standardised.
    """

    arrays: Arrays
    split: Split
    targets: NDArray[np.int64]  # [N], the label to learn from of every training image, or UNKNOWN
    normalisation: Normalisation | None
    features: FeatureStore | None = None  # its views are standardised too

    @property
    def images_digest(self) -> str:
        """Tells the training images from those of other data; labels do not count."""
        return digest_of(self.arrays.train_images) if self.features is None else self.features.plan.images

    def test(self) -> tuple[Images, NDArray[np.int64]]:
        """Test images and labels; for a transductive source, the training images whose labels are not used."""
        arrays = self.arrays
        if not arrays.transductive:
            return arrays.test_images, arrays.test_labels
        rest = self.tested()
        return select_images(arrays.train_images, rest), arrays.train_labels[rest]

    def tested(self) -> NDArray[np.int64]:
        """The training images that a transductive source tests on: those whose labels are not used."""
        rest = np.ones(len(self.arrays.train_labels), dtype=bool)
        rest[np.concatenate([self.split.labelled, self.split.trusted, self.split.validation])] = False
        return np.flatnonzero(rest)


def prepare(settings: DataSettings, seed: int, normalisation: Normalisation | None = None) -> Prepared:
    """Loads, splits and (where asked) adds label noise. Raises DataError where the data cannot be used as asked.

    normalisation: constants for images instead of the data's own.
    """
    arrays = load(settings)
    parts = split_images(arrays, settings, seed)
    targets = _make_targets(arrays, parts, settings, seed)
    if settings.features:
        return _replace_images(Prepared(arrays, parts, targets, None), settings.features)
    constants = _choose_normalisation(arrays.train_images, settings.channels, normalisation)
    return Prepared(arrays, parts, targets, constants)


def _replace_images(prepared: Prepared, folder: str) -> Prepared:
    """The data set with stored features in the place of its images. Raises DataError where they are of other images."""
    arrays, store = prepared.arrays, open_features(folder)
    store.require(images=digest_of(arrays.train_images))
    standardise = measure_features(store.centre)
    train = standardise.apply(store.centre)
    arrays = arrays._replace(
        train_images=train, test_images=train if arrays.transductive else standardise.apply(store.test)
    )
    views = None if store.views is None else standardise.apply(store.views)
    return prepared._replace(arrays=arrays, features=store._replace(views=views))


def _choose_normalisation(images: Images, channels: int, asked: Normalisation | None) -> Normalisation | None:
    """As asked; else measured where that costs nothing, and ImageNet's where it would take decoding everything.

    None for points.
    """
    if not isinstance(images, np.ndarray):
        return asked or IMAGENET
    return None if images.ndim == 2 else asked or measure(cast(NDArray[np.uint8], images), channels)


def fingerprint(prepared: Prepared, settings: DataSettings, seed: int) -> dict[str, Word]:
    """Everything that decides which images a step sees and how; large values as hashes."""
    arrays, parts = prepared.arrays, prepared.split
    known: dict[str, Word] = {
        "source": settings.source,
        "images": digest_of(arrays.train_images, arrays.train_labels),
        "labelled": len(parts.labelled),
        "trusted": len(parts.trusted),
        "unlabelled": len(parts.unlabelled),
        "split": digest(*parts, prepared.targets),
        "seed": seed,
        "batch_labelled": settings.batch_labelled,
        "batch_unlabelled": settings.batch_unlabelled,
        "batch_trusted": settings.batch_trusted,
        "image_size": settings.image_size,
        "channels": settings.channels,
        "flip": settings.flip,
        "rand_augment": list(settings.rand_augment),
        "cutout": settings.cutout,
        "shift": settings.shift,
    }
    if settings.minimum_confidence or settings.per_class:
        known |= {"minimum_confidence": settings.minimum_confidence, "per_class": settings.per_class}
    if isinstance(arrays.train_images, np.ndarray):
        return known
    del known["shift"]
    return known | {
        "crop_scale": list(settings.crop_scale),
        "crop_ratio": list(settings.crop_ratio),
        "start_size": settings.start_size,
        "grow_steps": settings.grow_steps,
    }


def split_images(arrays: Arrays, settings: DataSettings, seed: int) -> Split:
    """Splits the training images as `settings` ask. Raises DataError where there are too few images."""
    return split(
        arrays.train_labels,
        arrays.classes,
        labelled=settings.labels,
        trusted=settings.trusted,
        unlabelled=settings.unlabelled,
        validation=settings.validation,
        seed=seed,
        set_aside=arrays.trusted,
        usable=_make_filter(arrays, settings),
    )


def _make_filter(arrays: Arrays, settings: DataSettings) -> Callable[[NDArray[np.int64]], NDArray[np.int64]] | None:
    """The filter of unlabelled images that `settings` ask for; None where they ask for none."""
    if not (settings.minimum_confidence or settings.per_class):
        return None
    key = "filter_store" if settings.filter_store else "store"
    store = open_store(getattr(settings, key))
    store = store.fit(images=digest_of(arrays.train_images), classes=arrays.classes, key=f"data.{key}")
    return partial(select_confident, store, minimum=settings.minimum_confidence, per_class=settings.per_class)


def _make_targets(arrays: Arrays, parts: Split, settings: DataSettings, seed: int) -> NDArray[np.int64]:
    kind, rate = settings.noise
    true, labelled = arrays.train_labels, parts.labelled
    images = arrays.train_images
    if not isinstance(images, np.ndarray):
        if kind == "brightness":
            raise DataError('data.noise = "brightness" needs decoded images: use pair or symmetric.')
        images = np.empty((0, 0, 0, 3), np.uint8)
    images = images[labelled if kind == "brightness" else labelled[:0]]  # a large part of the data set
    classes = len(arrays.classes)
    targets = np.full(len(true), UNKNOWN, dtype=np.int64)
    targets[parts.trusted] = true[parts.trusted]
    targets[labelled] = add_noise(true[labelled], labelled, images, classes, kind=kind, rate=rate, seed=seed)
    return targets
