"""Data for the rows that need a loader: points, which need no package, and pictures, which need DALI."""

from typing import Final

import torch

from benchmarks.gpu.cases import MissingError, Setting
from benchmarks.gpu.runs import Form, Sections, make_config
from fastmpl.config import Config
from fastmpl.data.build import Data, build
from fastmpl.run.graph_choice import loaded_dtype

POINTS: Final[Sections] = {
    "run": {"steps": 60, "log_every": 5},
    "data": {
        "source": "two_moons", "labels": 6, "validation": 100, "batch_labelled": 6, "batch_unlabelled": 64,
        "flip": False, "shift": 0.0, "rand_augment": (0, 0), "cutout": 0.0,
    },
    "teacher": {"model": "perceptron_tanh", "width": 8, "depth": 3, "warmup": 0},
    "student": {"model": "perceptron_tanh", "width": 8, "depth": 3, "warmup": 0},
    "uda": {"ramp": 20},
}  # fmt: skip
PICTURES: Final[Sections] = {
    "run": {"steps": 60, "log_every": 5},
    "data": {"source": "digits", "labels": 100, "validation": 100, "image_size": 8, "batch_labelled": 8,
             "batch_unlabelled": 56},
    "teacher": {"model": "conv", "width": 32, "warmup": 10},
    "student": {"model": "conv", "width": 32, "warmup": 10},
    "uda": {"ramp": 20},
}  # fmt: skip
SOURCES: Final = {"points": POINTS, "pictures": PICTURES}


def source_config(source: str, form: Form) -> Config:
    return make_config(form, SOURCES[source])


def open_data(config: Config, device: torch.device, setting: Setting) -> Data:
    """The data of a run, made on the device that trains. Raises MissingError for pictures on an imitated GPU."""
    if setting.is_imitated and device.type == "cuda" and config.data.source != "two_moons":
        raise MissingError("needs a GPU: DALI's pipelines are not imitated")
    return build(
        config.data,
        seed=config.run.seed,
        channels_last=config.system.channels_last,
        threads=2,
        device=None if device.type == "cpu" else device.index or 0,
        dtype=loaded_dtype(config, device),
    )
