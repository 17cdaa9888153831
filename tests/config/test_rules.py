"""What cannot work is refused when the file is read, in one sentence, and what can is accepted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmpl.config import Config, ConfigError, load
from fastmpl.config.rules import IMPOSSIBLE

Load = Callable[..., Config]


@pytest.fixture
def read(tmp_path: Path) -> Load:
    """Reads an empty file with these dotted keys over it."""
    path = tmp_path / "cfg.toml"
    path.write_text("")

    def read(**overrides: Any) -> Config:
        return load(path, {name.replace("__", "."): value for name, value in overrides.items()})

    return read


LEGAL = [
    ("soft", "exact"),
    ("sampled", "per_example"),
    ("sampled", "scalar"),
    ("argmax", "scalar"),
    ("soft", "off"),
    ("sampled", "off"),
    ("argmax", "off"),
]

REFUSED = [
    (
        {"feedback.kind": "scalar"},
        'method.targets = "soft" with feedback.kind = "scalar" gives the teacher a zero gradient. '
        'Use kind = "exact", or targets = "sampled".',
    ),
    (
        {"feedback.kind": "per_example"},
        'method.targets = "soft" with feedback.kind = "per_example" has no drawn label to credit. '
        'Use kind = "exact", or targets = "sampled".',
    ),
    (
        {"method.targets": "sampled"},
        'method.targets = "sampled" with feedback.kind = "exact" asks for the derivative by a whole distribution of '
        'which the student saw one draw. Use kind = "per_example", or targets = "soft".',
    ),
    (
        {"method.targets": "argmax"},
        'method.targets = "argmax" with feedback.kind = "exact" cannot work: the arg max has no gradient and is not a '
        'sample. Use kind = "scalar", or targets = "soft".',
    ),
    (
        {"method.targets": "argmax", "feedback.kind": "per_example"},
        'method.targets = "argmax" with feedback.kind = "per_example" cannot work: the arg max has no gradient and is '
        'not a sample. Use kind = "scalar", or targets = "sampled".',
    ),
    (
        {"data.source": "webdataset", "data.root": "a", "data.decode": "once"},
        'data.decode = "once" is for data.source = "folder": images of "webdataset" are decoded at every step.',
    ),
    (
        {"data.decode": "always"},
        'data.decode = "always" with data.source = "fashion_mnist": its images are not encoded. Use decode = "auto".',
    ),
    (
        {"data.crop_scale": [0.5, 0.1]},
        "data.crop_scale = [0.5, 0.1] is no range. Use the smaller first, and a larger one above 0.",
    ),
    (
        {"data.start_size": 16},
        "data.start_size and data.grow_steps go together: the first size, and the steps until image_size.",
    ),
    (
        {"data.start_size": 16, "data.grow_steps": 9},
        'data.start_size needs images that are decoded at every step: data.decode = "always".',
    ),
    (
        {"data.source": "tfrecord", "data.root": "a", "data.start_size": 64, "data.grow_steps": 9},
        "data.start_size = 64 is larger than data.image_size = 28.",
    ),
    (
        {
            "data.source": "tfrecord",
            "data.root": "a",
            "data.start_size": 16,
            "data.grow_steps": 9,
            "system.graph": "on",
        },
        'system.graph = "on" with data.start_size: a captured step has one size. Use graph = "off".',
    ),
    (
        {"feedback.images": "trusted"},
        'feedback.images = "trusted" needs data.trusted above 0, the number of clean images to set aside.',
    ),
    ({"feedback.baseline": 0.99}, 'feedback.baseline is for feedback.kind = "scalar", not "exact".'),
    (
        {"method.targets": "sampled", "feedback.kind": "scalar", "feedback.tangent": "difference"},
        'feedback.tangent is for feedback.kind = "exact" or "per_example": the scalar has no tangent.',
    ),
    (
        {"method.targets": "sampled", "feedback.kind": "scalar", "feedback.depth": 1},
        'feedback.depth is for feedback.kind = "exact" or "per_example": the scalar has no tangent.',
    ),
    (
        {"feedback.tangent": "difference", "system.precision": "bf16"},
        'feedback.tangent = "difference" with system.precision = "bf16" loses the difference to rounding. '
        'Use tangent = "jvp", or precision = "float32".',
    ),
    (
        {"feedback.kind": "off", "feedback.control": "flipped"},
        'feedback.control = "flipped" with feedback.kind = "off" has nothing to spoil.',
    ),
    (
        {"feedback.every": 4000},
        "feedback.every = 4000 is more than run.steps = 3000: no step would credit.",
    ),
    (
        {"feedback.kind": "off", "feedback.every": 4},
        'feedback.every = 4 with feedback.kind = "off" has no step to credit. Leave it out.',
    ),
    (
        {"method.name": "uda", "feedback.every": 4},
        '[feedback] is for method.name = "mpl" or "reduced_mpl", not "uda". '
        'Leave the section out, or set feedback.kind = "off".',
    ),
    (
        {"method.name": "uda", "feedback.weight": 2.0},
        '[feedback] is for method.name = "mpl" or "reduced_mpl", not "uda". '
        'Leave the section out, or set feedback.kind = "off".',
    ),
    (
        {"method.threshold": 0.5},
        'method.threshold = 0.5 is for method.name = "pseudo_label", not "mpl". '
        "The consistency loss has its own, uda.threshold.",
    ),
    (
        {"method.name": "supervised", "method.threshold": 0.5},
        'method.threshold = 0.5 is for method.name = "pseudo_label", not "supervised".',
    ),
    (
        {"method.name": "uda", "uda.weight": 0.0},
        'method.name = "uda" with uda.weight = 0 is supervised training. Use method.name = "supervised".',
    ),
    (
        {"method.name": "distillation"},
        'method.name = "distillation" with teacher.model = "wrn_28_2" has nothing to learn from. '
        'Name the folder of a run (runs/NAME) or "timm:NAME".',
    ),
    (
        {"method.name": "distillation", "teacher.model": "runs/a", "method.targets": "argmax"},
        'method.targets = "argmax" with method.name = "distillation": it learns from whole distributions. '
        'Use targets = "soft", or method.name = "pseudo_label".',
    ),
    (
        {"method.name": "reduced_mpl"},
        'method.name = "reduced_mpl" needs data.store, the stored distributions of a large teacher.',
    ),
    (
        {"method.name": "distillation", "data.store": "a", "teacher.model": "runs/b"},
        'data.store takes the place of a teacher, and teacher.model = "runs/b" names another. '
        "Leave one of the two out.",
    ),
    (
        {"method.name": "gold_correction", "data.trusted": 50},
        'method.name = "gold_correction" with teacher.model = "wrn_28_2" names no run that learned the noisy labels. '
        'Train method.name = "supervised" on the same data and name its folder (runs/NAME), or set '
        'method.corruption = "identity".',
    ),
    (
        {"method.name": "gold_correction", "data.trusted": 50, "teacher.model": "timm:resnet18"},
        'method.name = "gold_correction" with teacher.model = "timm:resnet18" names no run that learned the noisy labels. '
        'Train method.name = "supervised" on the same data and name its folder (runs/NAME), or set '
        'method.corruption = "identity".',
    ),
    (
        {"method.name": "gold_correction", "data.trusted": 50, "teacher.model": "a", "method.corruption": "identity"},
        'method.corruption = "identity" estimates nothing, and teacher.model = "a" names a network to estimate by. '
        "Leave one of the two out.",
    ),
    (
        {"method.name": "gold_correction", "teacher.model": "runs/a"},
        'method.name = "gold_correction" needs data.trusted above 0, the number of clean images to set aside.',
    ),
    (
        {"method.name": "gold_correction", "data.trusted": 50, "teacher.model": "a", "method.supervised_weight": 2.0},
        'method.supervised_weight = 2.0 with method.name = "gold_correction" weighs nothing. '
        "Use method.trusted_weight, the weight of the trusted images.",
    ),
    (
        {"method.trusted_weight": 0.5},
        'method.trusted_weight = 0.5 is for method.name = "gold_correction", not "mpl".',
    ),
    (
        {"method.name": "supervised", "method.corruption": "identity"},
        'method.corruption = "identity" is for method.name = "gold_correction", not "supervised".',
    ),
    (
        {"method.name": "gold_correction", "data.trusted": 50, "teacher.model": "a", "feedback.images": "trusted"},
        '[feedback] is for method.name = "mpl" or "reduced_mpl", not "gold_correction". '
        'Leave the section out, or set feedback.kind = "off".',
    ),
    ({"data.store": "a"}, 'data.store is for method.name = "distillation" or "reduced_mpl", not "mpl".'),
    (
        {"data.per_class": 9},
        "data.per_class = 9 needs data.filter_store, the distributions that say how sure a teacher is.",
    ),
    (
        {"data.minimum_confidence": 0.9},
        "data.minimum_confidence = 0.9 needs data.filter_store, the distributions that say how sure a teacher is.",
    ),
    (
        {"data.filter_store": "a"},
        "data.filter_store filters nothing: set data.minimum_confidence or data.per_class above 0.",
    ),
    (
        {"student.model": "wrn_27_2"},
        'student.model = "wrn_27_2" is no network; the folder of a run can only be a teacher. '
        'Use wrn_DEPTH_WIDTH with DEPTH = 6 n + 4 (wrn_28_2), conv, perceptron, linear, or "timm:NAME".',
    ),
    (
        {"teacher.model": "runs/a"},
        'teacher.model = "runs/a" is no network that method.name = "mpl" can train. '
        'Use wrn_DEPTH_WIDTH with DEPTH = 6 n + 4 (wrn_28_2), conv, perceptron, linear, or "timm:NAME".',
    ),
    (
        {"data.source": "two_moons"},
        'data.source = "two_moons" with student.model = "wrn_28_2": use "linear" or "perceptron".',
    ),
    (
        {"data.source": "two_moons", "student.model": "perceptron"},
        'data.source = "two_moons" with teacher.model = "wrn_28_2": use "linear" or "perceptron".',
    ),
    (
        {"student.optimiser": "nesterov", "student.momentum": 0.0},
        'student.optimiser = "nesterov" needs student.momentum above 0. Use "sgd" for none.',
    ),
    (
        {"student.optimiser": "apex:FusedSGD", "system.graph": "on"},
        'system.graph = "on" with student.optimiser = "apex:FusedSGD": it takes its rate as a number of the host. '
        'Use graph = "auto", or student.optimiser = "sgd".',
    ),
    (
        {"teacher.optimiser": "apex:FusedLAMB", "system.graph": "on"},
        'system.graph = "on" with teacher.optimiser = "apex:FusedLAMB": it takes its rate as a number of the host. '
        'Use graph = "auto", or teacher.optimiser = "lamb".',
    ),
    (
        {"teacher.optimiser": "lamb", "system.engine": "zero"},
        'system.engine = "zero" with teacher.optimiser = "lamb": its trust ratio needs whole parameters, and ZeRO '
        'steps slices of them. Use engine = "plain", or teacher.optimiser = "adamw".',
    ),
    (
        {"data.noise": ["none", 0.5]},
        'data.noise = ["none", 0.5] has no kind of wrong label. Use "pair", "symmetric" or "brightness".',
    ),
    (
        {"data.channels": 1, "data.source": "cifar10"},
        'data.channels = 1 is for grey images, data.source = "digits" or "fashion_mnist"; "cifar10" needs channels = 3.',
    ),
    (
        {"data.channels": 1},
        "data.channels = 1 with data.rand_augment = [2, 10]: its operations are made for colours. Use channels = 3, or "
        "rand_augment = [0, 0].",
    ),
    ({"data.channels": 2}, "data.channels = 2: use 3, or 1 for a data set of grey images."),
    ({"data.batch_trusted": 8}, "data.batch_trusted = 8 needs data.trusted above 0."),
    (
        {"finetune.steps": 1, "finetune.images": "trusted"},
        'finetune.images = "trusted" needs data.trusted above 0.',
    ),
    ({"data.source": "folder"}, 'data.source = "folder" needs data.root, the folder of your data.'),
    ({"system.accumulate": 3}, "data.batch_labelled = 64 is not a multiple of system.accumulate = 3."),
    (
        {"data.batch_unlabelled": 447, "system.accumulate": 2},
        "data.batch_unlabelled = 447 is not a multiple of system.accumulate = 2.",
    ),
    ({"system.offload": True}, 'system.offload = true needs system.engine = "zero".'),
    (
        {"system.engine": "zero", "system.zero_stage": 0, "system.offload": True},
        "system.offload = true with system.zero_stage = 0 has no shards. Use zero_stage = 1, 2 or 3.",
    ),
    (
        {"system.engine": "zero", "system.graph": "on", "system.zero_stage": 3},
        'system.graph = "on" with system.zero_stage = 3: passes gather their parameters. Use graph = "auto".',
    ),
    (
        {"system.engine": "zero", "system.graph": "on", "system.recompute": True},
        'system.graph = "on" with engine = "zero" and recompute = true cannot work. Leave one of them out.',
    ),
    (
        {"system.compile": True, "student.norm": "sync"},
        'system.compile = true with student.norm = "sync": a compiled norm knows one rank. Use norm = "group".',
    ),
    (
        {"system.compile": True, "system.recompute": True},
        "system.compile = true with system.recompute = true: choose one of the two.",
    ),
    (
        {"student.model": "timm:resnet18.a1_in1k"},
        'student.model = "timm:resnet18.a1_in1k" names the weights "a1_in1k", and student.pretrained is empty, which means '
        'random ones. Set student.pretrained = "hub" or a file of weights, or student.model = "timm:resnet18".',
    ),
    (
        {"student.pretrained": "hub", "student.model": "conv"},
        'student.pretrained = "hub" with student.model = "conv", which timm does not know. Name a file.',
    ),
    (
        {"teacher.pretrained": "w.pth", "method.name": "uda", "feedback.kind": "off"},
        'teacher.pretrained is for a network that learns; method.name = "uda" has none there.',
    ),
    (
        {"teacher.freeze": 1, "method.name": "uda", "feedback.kind": "off"},
        'teacher.freeze is for a network that learns; method.name = "uda" has none there. Leave it out.',
    ),
    (
        {"student.freeze_steps": 5},
        "student.freeze_steps = 5 with student.freeze = 0 freezes nothing. Set student.freeze to the number of first "
        "layers, or -1 for all but the classifier.",
    ),
    (
        {"student.freeze": -1, "student.adapter": "lora:4", "student.pretrained": "w.pth"},
        'student.freeze = -1 with student.adapter = "lora:4" freezes the adapters too. Use student.freeze = 0: an adapter '
        "freezes all else but the classifier.",
    ),
    (
        {"student.freeze": -1, "system.engine": "zero", "system.zero_stage": 3},
        "student.freeze = -1 with system.zero_stage = 3, which shards frozen parameters too and steps none of them. "
        'Use zero_stage = 2, or engine = "plain".',
    ),
    ({"run.name": ".."}, 'run.name = ".." is not the name of a folder of its own.'),
]


@pytest.mark.parametrize(("targets", "kind"), LEGAL)
def test_every_row_that_can_work_is_accepted(read: Load, targets: str, kind: str) -> None:
    config = read(method__targets=targets, feedback__kind=kind)
    assert (config.method.targets, config.feedback.kind) == (targets, kind)


def test_every_pair_of_targets_and_feedback_is_either_legal_or_refused() -> None:
    pairs = {(t, k) for t in ("soft", "sampled", "argmax") for k in ("exact", "per_example", "scalar", "off")}
    assert set(LEGAL) | set(IMPOSSIBLE) == pairs
    assert not set(LEGAL) & set(IMPOSSIBLE)


@pytest.mark.parametrize(("keys", "sentence"), REFUSED, ids=[" ".join(keys) for keys, _ in REFUSED])
def test_what_cannot_work_is_refused_with_the_reason(read: Load, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(**keys)
    assert str(refused.value) == f"Config: {sentence}"


ACCEPTED = [
    {"method.targets": "sampled", "feedback.kind": "scalar", "feedback.baseline": 0.99},
    {"data.source": "file_list", "data.root": "a", "data.start_size": 16, "data.grow_steps": 9},
    {"data.source": "folder", "data.root": "a", "data.decode": "always", "feedback.images": "trusted"},
    {"feedback.tangent": "difference", "feedback.depth": 2},
    {"feedback.images": "trusted", "data.trusted": 50, "data.batch_trusted": 25},
    {"feedback.control": "shuffled"},
    {"method.name": "pseudo_label", "method.targets": "argmax", "method.threshold": 0.9},
    {"method.name": "pseudo_label", "teacher.model": "runs/a"},
    {"method.name": "gold_correction", "teacher.model": "runs/a", "data.trusted": 50, "method.trusted_weight": 0.2},
    {"method.name": "gold_correction", "method.corruption": "identity", "data.source": "folder", "data.root": "a"},
    {"method.name": "distillation", "teacher.model": "runs/a"},
    {"method.name": "distillation", "teacher.model": "timm:resnet18.a1_in1k"},
    {"method.name": "pseudo_label", "teacher.model": "timm:resnet18"},
    {"method.name": "uda", "feedback.kind": "off", "feedback.weight": 3.0},
    {"method.name": "supervised", "uda.weight": 0.0},
    {"method.name": "supervised", "data.batch_unlabelled": 447, "system.accumulate": 2},  # it takes none of these
    {"feedback.kind": "off", "feedback.images": "trusted", "feedback.baseline": 0.9},
    {"data.source": "two_moons", "student.model": "perceptron", "teacher.model": "perceptron_tanh"},
    {"data.source": "two_moons", "student.model": "perceptron", "method.name": "supervised"},
    {"student.optimiser": "nesterov"},
    {"student.optimiser": "adamw", "student.clip": 1.0},
    {"student.optimiser": "lamb", "teacher.optimiser": "apex:FusedAdam", "system.graph": "on"},
    {"student.optimiser": "apex:FusedLAMB", "feedback.tangent": "difference"},
    {"method.name": "supervised", "teacher.optimiser": "apex:FusedSGD", "system.graph": "on"},
    {"system.engine": "zero", "system.zero_stage": 2, "system.graph": "on"},
    {"student.model": "timm:resnet18", "student.norm": "group"},
    {"system.schedule": "joint", "system.precision": "bf16", "system.channels_last": False},
    {"feedback.every": 4},
    {"data.noise": ["pair", 0.45]},
    {"data.source": "svhn"},
    {"data.channels": 1, "data.rand_augment": [0, 0]},
    {"data.source": "folder", "data.root": "a", "feedback.images": "trusted", "data.batch_trusted": 8},
    {"method.name": "distillation", "data.store": "a"},
    {"method.name": "distillation", "data.store": "a", "data.per_class": 9},
    {"data.filter_store": "a", "data.minimum_confidence": 0.3},
    {"method.name": "reduced_mpl", "data.store": "a"},
    {"method.name": "reduced_mpl", "data.store": "a", "method.targets": "sampled", "feedback.kind": "per_example"},
    {"method.name": "reduced_mpl", "data.store": "a", "feedback.kind": "off", "method.supervised_weight": 0.0},
]


@pytest.mark.parametrize("keys", ACCEPTED, ids=[" ".join(keys) for keys in ACCEPTED])
def test_what_can_work_is_accepted(read: Load, keys: dict[str, Any]) -> None:
    assert isinstance(read(**keys), Config)


def test_one_key_switches_the_feedback_off(read: Load) -> None:
    section: dict[str, Any] = {"feedback.tangent": "difference", "feedback.weight": 3.0, "system.precision": "bf16"}
    with pytest.raises(ConfigError, match="rounding"):
        read(**section)
    assert read(**section, **{"feedback.kind": "off"}).feedback.kind == "off"


def test_a_configuration_made_in_python_meets_the_same_rules() -> None:
    from fastmpl.config import FeedbackConfig

    with pytest.raises(ConfigError, match="zero gradient"):
        Config(feedback=FeedbackConfig(kind="scalar"))
