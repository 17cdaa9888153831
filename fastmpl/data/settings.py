"""The keys of the configuration's [data] section that this package reads, as a protocol.

The configuration's own model satisfies it, and so does any object with these attributes; this package therefore needs
neither a file nor a parser. Bounds and cross-field rules belong to the configuration.
"""

from typing import Literal, Protocol

Interpolation = Literal["bilinear", "bicubic"]


class DataSettings(Protocol):
    """Counts are of images; batches are global, over all ranks."""

    @property
    def source(self) -> str: ...
    @property
    def root(self) -> str: ...
    @property
    def decode(self) -> str: ...  # auto once always
    @property
    def labels(self) -> int: ...  # class-balanced; 0: all
    @property
    def unlabelled(self) -> int: ...  # 0: all that remain
    @property
    def trusted(self) -> int: ...  # 0: none, or all that the source itself sets aside
    @property
    def noise(self) -> tuple[str, float]: ...  # none pair symmetric brightness, rate; on `labelled` only
    @property
    def validation(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def channels(self) -> int: ...  # of the networks' input: 3, or 1 of grey images
    @property
    def batch_labelled(self) -> int: ...
    @property
    def batch_unlabelled(self) -> int: ...
    @property
    def batch_trusted(self) -> int: ...  # 0: as batch_labelled
    @property
    def flip(self) -> bool: ...
    @property
    def shift(self) -> float: ...  # largest, as a fraction of the side; 0: off
    @property
    def rand_augment(self) -> tuple[int, int]: ...  # operations, magnitude of 30; 0 operations: off
    @property
    def cutout(self) -> float: ...  # fraction of the side; 0: off
    @property
    def crop_scale(self) -> tuple[float, float]: ...  # of images decoded at every step: share of the picture's area
    @property
    def crop_ratio(self) -> tuple[float, float]: ...  # width / height of such a crop
    @property
    def centre_crop(self) -> float: ...  # side of the evaluated square, as a share of the shorter side
    @property
    def interpolation(self) -> str: ...  # auto bilinear bicubic, of images that are evaluated
    @property
    def start_size(self) -> int: ...  # image size at step 0; 0: image_size throughout
    @property
    def grow_steps(self) -> int: ...  # steps until image_size is reached
    @property
    def prefetch(self) -> int: ...  # batches made ahead
    @property
    def decoder_load(self) -> float: ...  # share of JPEGs for a GPU's decoding engine
    @property
    def features(self) -> str: ...  # folder of stored features in the place of the images; empty: none
    @property
    def store(self) -> str: ...  # folder of stored distributions; empty: none
    @property
    def minimum_confidence(self) -> float: ...  # of unlabelled images in filter_store; 0: any
    @property
    def per_class(self) -> int: ...  # unlabelled images of one likeliest class; 0: any number
    @property
    def filter_store(self) -> str: ...  # folder of stored distributions; empty: that of `store`


def interpolation_of(settings: DataSettings) -> Interpolation:
    """How images are resized for evaluation: bilinear unless bicubic is asked for, both antialiased."""
    return "bicubic" if settings.interpolation == "bicubic" else "bilinear"
