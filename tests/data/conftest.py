"""Small settings and data for the tests of fastmpl.data."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

DIGITS = {
    "source": "digits",
    "root": "",
    "labels": 20,
    "unlabelled": 0,
    "trusted": 0,
    "noise": ("none", 0.0),
    "validation": 50,
    "image_size": 8,
    "channels": 3,
    "batch_labelled": 16,
    "batch_unlabelled": 24,
    "batch_trusted": 0,
    "flip": True,
    "rand_augment": (0, 0),
    "cutout": 0.5,
    "features": "",
    "store": "",
    "minimum_confidence": 0.0,
    "per_class": 0,
    "filter_store": "",
    "shift": 0.125,
    "decode": "auto",
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (0.75, 4 / 3),
    "centre_crop": 0.875,
    "interpolation": "auto",
    "start_size": 0,
    "grow_steps": 0,
    "prefetch": 2,
    "decoder_load": 0.65,
}


@pytest.fixture
def settings() -> Callable[..., SimpleNamespace]:
    """The [data] section for digits, with changes."""

    def make(**changes: object) -> SimpleNamespace:
        assert changes.keys() <= DIGITS.keys()
        return SimpleNamespace(**{**DIGITS, **changes})

    return make


@pytest.fixture
def coloured() -> NDArray[np.uint8]:
    """50 random colour images of 16 x 16 pixels; no pixel is black."""
    return np.random.default_rng(0).integers(1, 256, (50, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastmpl"
