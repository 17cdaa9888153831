"""Which keys of the networks go together: their names, weights, inputs, layers and optimisers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastmpl.config.meaning import HEADS, estimates_corruption, names_own_model, names_run, trained_optimisers
from fastmpl.config.optimisers import ABILITIES
from fastmpl.config.wording import toml

if TYPE_CHECKING:
    from fastmpl.config.schema import Config


def refuse_models(config: "Config") -> Iterator[str]:
    """Names of networks that a method or the data cannot use."""
    method, teacher, student = config.method.name, config.teacher.model, config.student.model
    known = 'Use wrn_DEPTH_WIDTH with DEPTH = 6 n + 4 (wrn_28_2), conv, perceptron, linear, or "timm:NAME"'
    if names_run(student):
        yield f'student.model = "{student}" is no network; the folder of a run can only be a teacher. {known}.'
    if method == "distillation" and names_own_model(teacher) and not config.data.store:
        yield (
            f'method.name = "distillation" with teacher.model = "{teacher}" has nothing to learn from. '
            'Name the folder of a run (runs/NAME) or "timm:NAME".'
        )
    if estimates_corruption(config) and not names_run(teacher):
        yield (
            f'method.name = "gold_correction" with teacher.model = "{teacher}" names no run that learned the noisy labels. '
            'Train method.name = "supervised" on the same data and name its folder (runs/NAME), or set '
            'method.corruption = "identity".'
        )
    if method == "gold_correction" and config.method.corruption == "identity" and not names_own_model(teacher):
        yield (
            f'method.corruption = "identity" estimates nothing, and teacher.model = "{teacher}" names a network to '
            "estimate by. Leave one of the two out."
        )
    if names_run(teacher) and method not in ("distillation", "pseudo_label", "gold_correction"):
        yield f'teacher.model = "{teacher}" is no network that method.name = "{method}" can train. {known}.'
    if config.data.store and not names_own_model(teacher):
        yield (
            f'data.store takes the place of a teacher, and teacher.model = "{teacher}" names another. '
            "Leave one of the two out."
        )
    vectors = 'data.source = "two_moons"' if config.data.source == "two_moons" else ""
    vectors = f'data.features = "{config.data.features}"' if config.data.features else vectors
    if vectors:
        trained = {"student": student, "teacher": teacher} if method == "mpl" else {"student": student}
        for role, model in trained.items():
            if model not in HEADS:
                yield f'{vectors} with {role}.model = "{model}": use "linear" or "perceptron".'


def refuse_weights(config: "Config") -> Iterator[str]:
    """A name of timm that asks for trained weights gets them by `pretrained`, or is refused."""
    trains = trained_optimisers(config)
    for role, network in (("student", config.student), ("teacher", config.teacher)):
        name, _, tag = network.model.partition(".")
        if role in trains and network.model.startswith("timm:") and tag and not network.pretrained:
            yield (
                f'{role}.model = "{network.model}" names the weights "{tag}", and {role}.pretrained is empty, which means '
                f'random ones. Set {role}.pretrained = "hub" or a file of weights, or {role}.model = "{name}".'
            )
        if network.pretrained and role not in trains:
            yield f'{role}.pretrained is for a network that learns; method.name = "{config.method.name}" has none there.'
        if network.pretrained and role == "teacher" and config.method.name == "reduced_mpl":
            yield 'teacher.pretrained with method.name = "reduced_mpl": its teacher is a small perceptron that starts new.'
        if network.adapter and (role not in trains or (role, config.method.name) == ("teacher", "reduced_mpl")):
            yield f'{role}.adapter is for a network that learns; method.name = "{config.method.name}" has none there.'
        if network.adapter and not network.pretrained:
            yield (
                f'{role}.adapter = "{network.adapter}" freezes the weights that {role}.pretrained names, and it is empty. '
                f'Name weights, or set {role}.adapter = "".'
            )
        if network.adapter and config.system.engine == "zero":
            yield f'{role}.adapter with system.engine = "zero": shards of a frozen network. Use engine = "plain".'
        if network.pretrained == "hub" and not network.model.startswith("timm:"):
            yield f'{role}.pretrained = "hub" with {role}.model = "{network.model}", which timm does not know. Name a file.'


def refuse_inputs(config: "Config") -> Iterator[str]:
    """The constants that a network's inputs are normalised with."""
    for role, network in (("student", config.student), ("teacher", config.teacher)):
        if not any((*network.mean, *network.std)):
            continue
        if not all(network.std):
            yield (
                f"{role}.mean = {toml(network.mean)} with {role}.std = {toml(network.std)}: set three deviations above 0, "
                "or leave both out."
            )
        if role not in trained_optimisers(config) or (role == "teacher" and config.method.name == "reduced_mpl"):
            yield f'{role}.std is for a network that learns from images; "{config.method.name}" has none there.'
        if config.data.source == "two_moons":
            yield f'{role}.std is for images, and data.source = "two_moons" has points.'


def refuse_layers(config: "Config") -> Iterator[str]:
    """Frozen layers and layers with rates of their own."""
    trains = trained_optimisers(config)
    for role, network in (("student", config.student), ("teacher", config.teacher)):
        given = {key: getattr(network, key) for key in ("layer_decay", "freeze", "freeze_steps", "head_lr")}
        changed = [key for key, value in given.items() if value != type(network).model_fields[key].default]
        if changed and role not in trains:
            yield (
                f"{role}.{changed[0]} is for a network that learns; method.name = "
                f'"{config.method.name}" has none there. Leave it out.'
            )
        if network.freeze_steps and not network.freeze:
            yield (
                f"{role}.freeze_steps = {network.freeze_steps} with {role}.freeze = 0 freezes nothing. "
                f"Set {role}.freeze to the number of first layers, or -1 for all but the classifier."
            )
        if network.freeze == -1 and network.adapter:
            yield (
                f'{role}.freeze = -1 with {role}.adapter = "{network.adapter}" freezes the adapters too. '
                f"Use {role}.freeze = 0: an adapter freezes all else but the classifier."
            )
        if (
            network.freeze
            and not network.freeze_steps
            and config.system.zero_stage == 3
            and config.system.engine == "zero"
        ):
            yield (
                f"{role}.freeze = {network.freeze} with system.zero_stage = 3, which shards frozen parameters too and "
                'steps none of them. Use zero_stage = 2, or engine = "plain".'
            )


def refuse_optimisers(config: "Config") -> Iterator[str]:
    """What an optimiser lacks for captured or sharded steps."""
    for role, network in (("teacher", config.teacher), ("student", config.student)):
        if network.optimiser == "nesterov" and network.momentum == 0:
            yield f'{role}.optimiser = "nesterov" needs {role}.momentum above 0. Use "sgd" for none.'
    for role, name in trained_optimisers(config).items():
        able = ABILITIES[name]
        if config.system.graph == "on" and not able.captured:
            yield (
                f'system.graph = "on" with {role}.optimiser = "{name}": it takes its rate as a number of the host. '
                f'Use graph = "auto", or {role}.optimiser = "{able.instead}".'
            )
        if config.system.engine == "zero" and not able.sharded:
            yield (
                f'system.engine = "zero" with {role}.optimiser = "{name}": its trust ratio needs whole parameters, and '
                f'ZeRO steps slices of them. Use engine = "plain", or {role}.optimiser = "adamw".'
            )
