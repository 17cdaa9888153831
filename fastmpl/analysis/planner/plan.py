"""The plan of a configuration: every sharding and schedule, the memory of a rank, what fits, the largest batch.

    peak = lasting state + kept + overlap + activations        and at least lasting state + kept + what credit gathers

`overlap` is counted with copies of the networks, so that at ZeRO 2 and 3 the peak is an upper bound by at most the
gradients of one network.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

from torch import nn

from fastmpl.analysis.planner.cost import BATCHES, Cost, Shape, cost
from fastmpl.analysis.planner.state import Gathered, Stage, State, gathered_bytes, state_bytes
from fastmpl.config import Config, NetworkConfig, feeds_back, trained
from fastmpl.config.optimisers import ABILITIES
from fastmpl.errors import ConfigError
from fastmpl.models import build_network
from fastmpl.models.reduced_teacher import ReducedTeacher

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


class Size(NamedTuple):
    """A network in numbers."""

    elements: int  # of its parameters
    layer: int  # of the module that owns most of them


class Choice(NamedTuple):
    """One sharding with one schedule."""

    sharding: Sharding
    schedule: str
    peak: int  # bytes of a rank's device
    times: float  # the largest batch that fits, in those of the configuration; 0 where none does


class Plan(NamedTuple):
    """All of it, for `ranks` ranks."""

    ranks: int
    memory: float  # bytes of a device
    batches: dict[str, int]  # images of a step of a rank
    networks: dict[str, Size]
    states: dict[Sharding, State]  # of all networks
    gathered: dict[Sharding, Gathered]
    costs: dict[str, Cost]  # by schedule
    choices: list[Choice]


def plan(config: Config, *, ranks: int, memory: float, classes: int = 0, schedules: tuple[str, ...] = ()) -> Plan:
    """The plan of `config` on that many ranks of `memory` bytes each. `schedules`: some of SCHEDULES; all if empty.

    classes: of a folder of one's own. Raises ConfigError where they are needed, or a rank would have no image.
    """
    for name in ("batch_labelled", "batch_unlabelled"):
        if getattr(config.data, name) < ranks * config.system.accumulate:
            raise ConfigError(
                f"data.{name} = {getattr(config.data, name)} gives {ranks} ranks less than an image each."
            )
    shape = shape_of(config, classes)
    sizes = {role: size_of(_network(config, role, shape)) for role in trained(config)}
    states = {name: _state(config, sizes, stage, ranks, offload) for name, (stage, offload) in _possible(config)}
    gathered = {name: _gathered(config, sizes["student"], stage, ranks) for name, (stage, _) in _possible(config)}
    names = (schedules or tuple(SCHEDULES)) if "teacher" in sizes else ("one network",)
    kept = gathered["copies"].kept
    costs = {name: cost(_scheduled(config, name), shape, ranks, kept) for name in names}
    choices = [
        _choice(sharding, schedule, states[sharding], gathered[sharding], costs[schedule], memory)
        for sharding in states
        for schedule in costs
    ]
    batches = {name: math.ceil(getattr(config.data, name) / ranks) for name in BATCHES if getattr(config.data, name)}
    return Plan(ranks, memory, batches, sizes, states, gathered, costs, choices)


def shape_of(config: Config, classes: int = 0) -> Shape:
    """What the configuration classifies, without its data."""
    data = config.data
    known = classes or CLASSES.get(data.source, 0)
    if not known:
        raise ConfigError(f'data.source = "{data.source}" does not tell the number of classes. Add --classes N.')
    return Shape(known, (2,) if data.source == "two_moons" else (3, data.image_size, data.image_size))


def size_of(module: nn.Module) -> Size:
    layers = [sum(p.numel() for p in layer.parameters(recurse=False)) for layer in module.modules()]
    return Size(sum(p.numel() for p in module.parameters()), max(layers))


def _network(config: Config, role: str, shape: Shape) -> nn.Module:
    from torch._subclasses.fake_tensor import FakeTensorMode

    section: NetworkConfig = getattr(config, role)
    with FakeTensorMode():
        if role == "teacher" and config.method.name == "reduced_mpl":
            return ReducedTeacher(shape.classes, section.width, section.depth, 0)
        return build_network(section, classes=shape.classes, image_shape=shape.image, seed=0)


def _possible(config: Config) -> Iterator[tuple[Sharding, tuple[Stage, bool]]]:
    """LAMB's trust ratio, which needs whole parameters, leaves copies alone."""
    shards = all(ABILITIES[name].sharded for name in trained(config).values())
    return ((name, how) for name, how in SHARDINGS.items() if shards or name == "copies")


def _state(config: Config, sizes: Mapping[str, Size], stage: Stage, ranks: int, offload: bool) -> State:
    total = State()
    for role, name in trained(config).items():
        averaged = role == "student" and config.student.average > 0
        total = total.plus(
            state_bytes(
                sizes[role].elements,
                stage=stage,
                ranks=ranks,
                moments=ABILITIES[name].moments,
                average=averaged,
                offload=offload,
            )
        )
    return total


def _gathered(config: Config, student: Size, stage: Stage, ranks: int) -> Gathered:
    feedback = config.feedback
    exact = feeds_back(config) and (feedback.kind in ("exact", "per_example") or feedback.cosine)
    return gathered_bytes(
        student.elements, stage=stage, ranks=ranks, layer=student.layer, exact=exact, tangent=feedback.tangent
    )


def _scheduled(config: Config, name: str) -> Config:
    return config.model_copy(update={"system": config.system.model_copy(update=dict(SCHEDULES.get(name, {})))})


def _choice(sharding: Sharding, schedule: str, state: State, gathered: Gathered, cost: Cost, memory: float) -> Choice:
    fixed = state.lasting + gathered.kept
    peak = fixed + max(cost.overlap + cost.activations, gathered.credit)
    room = memory - fixed - cost.overlap
    fits = fixed + gathered.credit <= memory and cost.activations > 0
    return Choice(sharding, schedule, peak, max(0.0, room / cost.activations) if fits else 0.0)
