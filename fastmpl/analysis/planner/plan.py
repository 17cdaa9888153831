"""Plans the memory of a configuration: for each sharding and schedule, what fits, and the largest batch.

    peak = lasting state + overlap + activations        and at least lasting state + kept + what credit gathers

`overlap` is counted with whole networks on each rank. With shards the peak is therefore an upper bound: too large by at
most the gradients of one network, and, where a step peaks while it credits the labels, by what it keeps for that.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmpl.analysis.planner.cost import Cost, Shape, count_costs, divide_batches
from fastmpl.analysis.planner.messages import Exchanged, exchanged_of
from fastmpl.analysis.planner.state_bytes import FLOAT, Gathered, Stage, StateBytes, gathered_bytes, state_bytes
from fastmpl.config import (
    Config,
    NetworkConfig,
    batch_sizes,
    feeds_back,
    trained_optimisers,
    uses_forward_mode,
    without_feedback,
)
from fastmpl.config.optimisers import ABILITIES
from fastmpl.data.sources import list_images
from fastmpl.data.stores.features import read_header
from fastmpl.errors import ConfigError
from fastmpl.learners.layers import freeze_layers
from fastmpl.learners.tangent_parts import images_at_once
from fastmpl.models import build_network
from fastmpl.models.reduced_teacher import ReducedTeacher
from fastmpl.run.expected_inputs import settle_inputs

Sharding = Literal["copies", "ZeRO 1", "ZeRO 2", "ZeRO 3", "ZeRO 1, offload", "ZeRO 2, offload", "ZeRO 3, offload"]
SHARDINGS: Final[Mapping[Sharding, tuple[Stage, bool]]] = {
    "copies": (0, False),
    "ZeRO 1": (1, False),
    "ZeRO 2": (2, False),
    "ZeRO 3": (3, False),
    "ZeRO 1, offload": (1, True),
    "ZeRO 2, offload": (2, True),
    "ZeRO 3, offload": (3, True),
}
SCHEDULES: Final[Mapping[str, Mapping[str, object]]] = {
    "joint": {"schedule": "joint", "deferred": False, "recompute": False},
    "joint, deferred": {"schedule": "joint", "deferred": True, "recompute": False},
    "split": {"schedule": "split", "deferred": False, "recompute": False},
    "split, deferred": {"schedule": "split", "deferred": True, "recompute": False},
    "split, deferred, recomputed": {"schedule": "split", "deferred": True, "recompute": True},
}
CLASSES: Final = {"digits": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100, "svhn": 10, "two_moons": 2}


class NetworkSize(NamedTuple):
    """The number of parameters of a network and of its largest layer."""

    elements: int  # of its parameters
    layer: int  # of the module that owns most of them
    frozen: int = 0  # of those, what never learns

    @property
    def learning(self) -> int:
        """What has gradients, moments and an average."""
        return self.elements - self.frozen


class Fit(NamedTuple):
    """How a sharding with a schedule fits a device."""

    sharding: Sharding
    schedule: str
    peak: int  # bytes of a rank's device
    times: float  # the largest batch that fits, as a multiple of the configured batch; 0 if none fits


class TangentParts(NamedTuple):
    """How the forward-mode pass of a rank goes through the student's images, to bound its temporaries."""

    parts: int  # of a micro-batch
    images: int  # of the largest part


class MemoryPlan(NamedTuple):
    """The memory of every sharding and schedule, for `ranks` ranks."""

    ranks: int
    memory: float  # bytes of a device
    batches: dict[str, int]  # images of a step of a rank
    networks: dict[str, NetworkSize]
    states: dict[Sharding, StateBytes]  # of all networks; with gold loss correction's matrix, which each rank holds
    gathered: dict[Sharding, Gathered]
    costs: dict[str, Cost]  # by schedule
    fits: list[Fit]
    tangent: TangentParts | None  # None: the feedback has no forward-mode pass
    classes: int
    exchanged: dict[str, Exchanged]  # by network, what ranks send of it


def plan_memory(
    config: Config, *, ranks: int, memory: float, classes: int = 0, schedules: tuple[str, ...] = ()
) -> MemoryPlan:
    """Plans `config` on `ranks` ranks of `memory` bytes each.

    classes: number of classes of a data set that is not in CLASSES. schedules: names of SCHEDULES; all if empty.
    Raises ConfigError if `classes` is needed and missing, or if a rank would have no image.
    """
    config = settle_inputs(config)
    asked = batch_sizes(config)
    for name, size in asked.items():
        if size < ranks * config.system.accumulate:
            raise ConfigError(
                f"data.{name} = {size} gives {ranks} ranks less than an image each"
                f"{' and micro-batch' if config.system.accumulate > 1 else ''}. Set it to a multiple of "
                f"{ranks * config.system.accumulate}, or use fewer ranks."
            )
    shape = shape_of(config, classes)
    networks = build_networks(config, shape)
    sizes = {role: size_of(networks[role]) for role in trained_optimisers(config)}
    corruption = StateBytes(parameters=FLOAT * shape.classes**2 if config.method.name == "gold_correction" else 0)
    states = {
        name: _state(config, sizes, stage, ranks, offload).plus(corruption)
        for name, (stage, offload) in _possible(config)
    }
    gathered = {name: _count_gathered(config, sizes["student"], stage, ranks) for name, (stage, _) in _possible(config)}
    names = (schedules or schedules_of(config)) if "teacher" in sizes else ("one network",)
    costs = _count_costs(config, names, shape, ranks)
    fits = [
        _fit(sharding, schedule, states[sharding], gathered[sharding], costs[schedule], memory)
        for sharding in states
        for schedule in costs
    ]
    batches = {name: math.ceil(size / ranks) for name, size in asked.items()}
    tangent = divide_tangent(config, shape, ranks, networks["student"])
    exchanged = {
        role: exchanged_of(networks[role], config.feedback.depth if role == "student" else 0) for role in sizes
    }
    return MemoryPlan(ranks, memory, batches, sizes, states, gathered, costs, fits, tangent, shape.classes, exchanged)


def schedules_of(config: Config) -> tuple[str, ...]:
    """The schedules that are planned: the published order, which costs more in all, only where it is configured."""
    return tuple(name for name, keys in SCHEDULES.items() if keys["schedule"] in ("split", config.system.schedule))


class Classes(NamedTuple):
    """The number of classes, and where it is known from."""

    number: int
    source: str


def count_classes(config: Config, asked: int = 0) -> Classes:
    """The classes that are asked for, those of a known data set or of the data where it is there, or those of timm.

    Raises ConfigError where nothing tells them, DataError where the data is there and cannot be used.
    """
    data, model = config.data, config.student.model
    if asked:
        return Classes(asked, "--classes")
    if data.source in CLASSES:
        return Classes(CLASSES[data.source], f"of {data.source}")
    if Path(data.root).is_dir():
        return Classes(len(list_images(data).classes), f"in {data.root}")
    if model.startswith("timm:"):
        import timm

        known = timm.get_pretrained_cfg(model.removeprefix("timm:").partition(".")[0])
        if known is not None:
            return Classes(known.num_classes, f"of timm's {model.removeprefix('timm:')}, for {data.root} is not there")
    raise ConfigError(
        f"{data.root} is not there, and the configuration does not tell the number of classes. Add --classes N."
    )


def shape_of(config: Config, classes: int = 0) -> Shape:
    """Classes and image shape of a configuration. Raises ConfigError for unknown classes."""
    data = config.data
    known = count_classes(config, classes).number
    if data.features:
        return Shape(known, (read_header(Path(data.features)).plan.features,))
    return Shape(known, (2,) if data.source == "two_moons" else (data.channels, data.image_size, data.image_size))


def size_of(module: nn.Module) -> NetworkSize:
    layers = [sum(p.numel() for p in layer.parameters(recurse=False)) for layer in module.modules()]
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    return NetworkSize(sum(p.numel() for p in module.parameters()), max(layers), frozen)


def divide_tangent(config: Config, shape: Shape, ranks: int, student: nn.Module | None = None) -> TangentParts | None:
    """The parts of the forward-mode pass of a rank; None if the feedback has no such pass. student: built if None."""
    if not uses_forward_mode(config):
        return None
    most = images_at_once(student or _network(config, "student", shape), shape.image)
    data = divide_batches(config, ranks).data
    seen = data.batch_unlabelled + (data.batch_labelled if config.system.schedule == "joint" else 0)
    images = seen // config.system.accumulate
    parts = -(-images // most) if most else 1
    return TangentParts(parts, -(-images // parts))


def build_networks(config: Config, shape: Shape) -> dict[str, nn.Module]:
    """The networks that are trained, by role, on fake tensors; equal ones are built once, for a deep one takes seconds."""
    built: dict[str, nn.Module] = {}
    for role in trained_optimisers(config):
        same = _has_equal_networks(config) and built
        built[role] = next(iter(built.values())) if same else _network(config, role, shape)
    return built


def _has_equal_networks(config: Config) -> bool:
    """Whether teacher and student are one network as far as numbers of parameters go."""
    keys = ("model", "norm", "width", "depth", "adapter", "freeze", "freeze_steps")
    equal = all(getattr(config.teacher, key) == getattr(config.student, key) for key in keys)
    return equal and config.method.name != "reduced_mpl"


def _network(config: Config, role: str, shape: Shape) -> nn.Module:
    section: NetworkConfig = getattr(config, role)
    with FakeTensorMode():
        if role == "teacher" and config.method.name == "reduced_mpl":
            return ReducedTeacher(shape.classes, section.width, section.depth, 0)
        network = build_network(section, classes=shape.classes, image_shape=shape.image, seed=0)
        freeze_layers(network, section)
        return network


def _possible(config: Config) -> Iterator[tuple[Sharding, tuple[Stage, bool]]]:
    """The shardings that the configuration allows.

    LAMB allows copies alone: its trust ratio needs whole parameters. Stage 3 takes no frozen parameters.
    """
    shards = all(ABILITIES[name].sharded for name in trained_optimisers(config).values())
    sections: list[NetworkConfig] = [getattr(config, role) for role in trained_optimisers(config)]
    freezes = any(section.freeze and not section.freeze_steps for section in sections)
    for name, (stage, offload) in SHARDINGS.items():
        if name == "copies" or (shards and not (freezes and stage == 3)):
            yield name, (stage, offload)


def _state(config: Config, sizes: Mapping[str, NetworkSize], stage: Stage, ranks: int, offload: bool) -> StateBytes:
    total = StateBytes()
    for role, name in trained_optimisers(config).items():
        averaged = role == "student" and config.student.average > 0
        total = total.plus(StateBytes(parameters=sizes[role].frozen * FLOAT)).plus(
            state_bytes(
                sizes[role].learning,
                stage=stage,
                ranks=ranks,
                moments=ABILITIES[name].moments,
                average=averaged,
                offload=offload,
            )
        )
    return total


def _count_gathered(config: Config, student: NetworkSize, stage: Stage, ranks: int) -> Gathered:
    feedback = config.feedback
    exact = feeds_back(config) and feedback.kind in ("exact", "per_example")
    return gathered_bytes(
        student.learning, stage=stage, ranks=ranks, layer=student.layer, exact=exact, tangent=feedback.tangent
    )


def _schedule(config: Config, name: str) -> Config:
    return config.model_copy(update={"system": config.system.model_copy(update=dict(SCHEDULES.get(name, {})))})


def _count_costs(config: Config, schedules: tuple[str, ...], shape: Shape, ranks: int) -> dict[str, Cost]:
    """The cost of a step by schedule. With feedback.every: the bytes of one that credits, the mean of the arithmetic."""

    def count(kind: Config) -> dict[str, Cost]:
        return count_costs({name: _schedule(kind, name) for name in schedules}, shape, ranks)

    costs, every = count(config), config.feedback.every
    if every == 1:
        return costs
    others = count(without_feedback(config))
    return {
        name: cost._replace(flops=round((cost.flops + (every - 1) * others[name].flops) / every))
        for name, cost in costs.items()
    }


def _fit(sharding: Sharding, schedule: str, state: StateBytes, gathered: Gathered, cost: Cost, memory: float) -> Fit:
    credit = state.lasting + gathered.kept + gathered.credit
    peak = max(state.lasting + cost.overlap + cost.activations, credit)
    room = memory - state.lasting - cost.overlap
    fits = credit <= memory and cost.activations > 0
    return Fit(sharding, schedule, peak, max(0.0, room / cost.activations) if fits else 0.0)
