"""Which keys go together. What cannot work is refused when the file is read, not at step 1,000.

A rule is a function from the configuration to the sentences that refuse it. What only the machine can tell (a GPU, free
memory, the number of images) is not asked here.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

from fastmpl.config.optimisers import ABILITIES
from fastmpl.config.wording import one_of, toml
from fastmpl.errors import ConfigError

if TYPE_CHECKING:
    from fastmpl.config.schema import Config

STREAMED: Final = ("file_list", "webdataset", "tfrecord")  # sources whose images are decoded at every step

# The pairs of method.targets and feedback.kind that cannot work: why, and what to use. All others can.
IMPOSSIBLE: Final = {
    ("soft", "scalar"): 'gives the teacher a zero gradient. Use kind = "exact", or targets = "sampled"',
    ("soft", "per_example"): 'has no drawn label to credit. Use kind = "exact", or targets = "sampled"',
    ("sampled", "exact"): (
        "asks for the derivative by a whole distribution of which the student saw one draw. "
        'Use kind = "per_example", or targets = "soft"'
    ),
    ("argmax", "exact"): (
        'cannot work: the arg max has no gradient and is not a sample. Use kind = "scalar", or targets = "soft"'
    ),
    ("argmax", "per_example"): (
        'cannot work: the arg max has no gradient and is not a sample. Use kind = "scalar", or targets = "sampled"'
    ),
}


HEADS: Final = ("linear", "perceptron", "perceptron_tanh")  # networks of a vector, such as points and stored features
GREY: Final = ("digits", "fashion_mnist")  # sources of images with one channel


def names_own_model(model: str) -> bool:
    """Whether `model` is a network of fastmpl: conv, linear, a perceptron, or wrn_DEPTH_WIDTH with DEPTH = 6 n + 4."""
    wide = re.fullmatch(r"wrn_(\d{1,4})_(\d{1,3})", model)
    if wide:
        return int(wide[1]) >= 10 and int(wide[1]) % 6 == 4 and int(wide[2]) >= 1
    return model in ("conv", *HEADS)


def names_run(model: str) -> bool:
    """Whether `model` is the folder of a run: neither a network of fastmpl nor one of timm."""
    return not names_own_model(model) and not model.startswith("timm:")


def feeds_back(config: "Config") -> bool:
    """Whether the teacher learns from the student's validation loss."""
    return config.method.name in ("mpl", "reduced_mpl") and config.feedback.kind != "off"


def uses_forward_mode(config: "Config") -> bool:
    """Whether the feedback has a forward-mode pass through the student."""
    feedback = config.feedback
    return feeds_back(config) and feedback.kind != "scalar" and feedback.tangent == "jvp"


def trained_optimisers(config: "Config") -> dict[str, str]:
    """The optimiser of each network that the method trains, by its role."""
    names: dict[str, str] = {"student": config.student.optimiser}
    if config.method.name in ("mpl", "reduced_mpl"):
        names["teacher"] = config.teacher.optimiser
    return names


def uses_tf32(config: "Config") -> bool:
    """Whether training passes may use TF32. The difference form forbids it: it compares the logits of such a pass."""
    compares = feeds_back(config) and config.feedback.tangent == "difference"
    return config.system.tf32 == "training" and not compares


NOT_CAPTURABLE: Final = (
    "networks in shards, images that grow or an optimiser that takes its rate from the host forbid it"
)


def is_capturable(config: "Config") -> bool:
    """Whether a step can be one CUDA graph: its images have one size, and the optimisers allow it."""
    plain = config.system.engine == "plain"
    return (
        plain
        and not config.data.start_size
        and all(ABILITIES[name].captured for name in trained_optimisers(config).values())
    )


def _may_have_trusted(config: "Config") -> bool:
    """Whether there can be trusted images: a user's folder may have some of its own."""
    return config.data.trusted > 0 or config.data.source in ("folder", *STREAMED)


def _run(config: "Config") -> Iterator[str]:
    if not config.run.name.strip("."):
        yield f'run.name = "{config.run.name}" is not the name of a folder of its own.'
    run = config.run
    if run.select_by != "accuracy" and not config.data.validation:
        yield f'run.select_by = "{run.select_by}" needs data.validation above 0: nothing is selected without such images.'
    if run.patience and not config.data.validation:
        yield f"run.patience = {run.patience} needs data.validation above 0: without such images no student is better."
    if run.patience and config.finetune.steps:
        yield f"run.patience = {run.patience} with finetune.steps: fine-tuning starts after run.steps. Leave one out."


def _models(config: "Config") -> Iterator[str]:
    method, teacher, student = config.method.name, config.teacher.model, config.student.model
    known = 'Use wrn_DEPTH_WIDTH with DEPTH = 6 n + 4 (wrn_28_2), conv, perceptron, linear, or "timm:NAME"'
    if names_run(student):
        yield f'student.model = "{student}" is no network; the folder of a run can only be a teacher. {known}.'
    if method == "distillation" and names_own_model(teacher) and not config.data.store:
        yield (
            f'method.name = "distillation" with teacher.model = "{teacher}" has nothing to learn from. '
            'Name the folder of a run (runs/NAME) or "timm:NAME".'
        )
    if names_run(teacher) and method not in ("distillation", "pseudo_label"):
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


def _weights(config: "Config") -> Iterator[str]:
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


def _inputs(config: "Config") -> Iterator[str]:
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


def _layers(config: "Config") -> Iterator[str]:
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
        if network.freeze and not network.freeze_steps and config.system.zero_stage == 3 and _shards(config):
            yield (
                f"{role}.freeze = {network.freeze} with system.zero_stage = 3, which shards frozen parameters too and "
                'steps none of them. Use zero_stage = 2, or engine = "plain".'
            )


def _shards(config: "Config") -> bool:
    return config.system.engine == "zero"


def _optimisers(config: "Config") -> Iterator[str]:
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


def _method(config: "Config") -> Iterator[str]:
    method = config.method
    if method.threshold > 0 and method.name != "pseudo_label":
        hint = " The consistency loss has its own, uda.threshold." if method.name in ("uda", "mpl") else ""
        yield f'method.threshold = {method.threshold} is for method.name = "pseudo_label", not "{method.name}".{hint}'
    if method.name == "distillation" and method.targets != "soft":
        yield (
            f'method.targets = "{method.targets}" with method.name = "distillation": it learns from whole '
            'distributions. Use targets = "soft", or method.name = "pseudo_label".'
        )
    if method.name == "uda" and config.uda.weight == 0:
        yield 'method.name = "uda" with uda.weight = 0 is supervised training. Use method.name = "supervised".'
    if method.name == "reduced_mpl" and not config.data.store:
        yield 'method.name = "reduced_mpl" needs data.store, the stored distributions of a large teacher.'
    if config.data.store and method.name not in ("distillation", "reduced_mpl"):
        yield f'data.store is for method.name = "distillation" or "reduced_mpl", not "{method.name}".'


def _feedback(config: "Config") -> Iterator[str]:
    feedback, method = config.feedback, config.method
    if feedback.kind == "off":  # one option switches the feedback off; the rest of the section then waits
        if feedback.control != "none":
            yield f'feedback.control = "{feedback.control}" with feedback.kind = "off" has nothing to spoil.'
        return
    if not feeds_back(config):
        if feedback != type(feedback)():
            yield (
                f'[feedback] is for method.name = "mpl" or "reduced_mpl", not "{method.name}". '
                'Leave the section out, or set feedback.kind = "off".'
            )
        return
    reason = IMPOSSIBLE.get((method.targets, feedback.kind))
    if reason:
        yield f'method.targets = "{method.targets}" with feedback.kind = "{feedback.kind}" {reason}.'
    if feedback.images == "trusted" and not _may_have_trusted(config):
        yield 'feedback.images = "trusted" needs data.trusted above 0, the number of clean images to set aside.'
    if feedback.kind == "scalar":
        if feedback.tangent != "jvp":
            yield 'feedback.tangent is for feedback.kind = "exact" or "per_example": the scalar has no tangent.'
        if feedback.depth > 0:
            yield 'feedback.depth is for feedback.kind = "exact" or "per_example": the scalar has no tangent.'
    else:
        if feedback.baseline > 0:
            yield f'feedback.baseline is for feedback.kind = "scalar", not "{feedback.kind}".'
    if feedback.tangent == "difference" and config.system.precision != "float32":
        yield (
            f'feedback.tangent = "difference" with system.precision = "{config.system.precision}" loses the '
            'difference to rounding. Use tangent = "jvp", or precision = "float32".'
        )


class _Source(Protocol):
    """The keys of [data] that say where images come from."""

    @property
    def source(self) -> str: ...
    @property
    def decode(self) -> str: ...


def decodes_always(data: _Source) -> bool:
    """Whether images are decoded at every step, rather than once before training."""
    return data.source in STREAMED or (data.source == "folder" and data.decode == "always")


def _growth(config: "Config") -> Iterator[str]:
    """Images that grow over the first steps."""
    data = config.data
    if bool(data.start_size) != bool(data.grow_steps):
        yield "data.start_size and data.grow_steps go together: the first size, and the steps until image_size."
    if not data.start_size:
        return
    if 0 < data.image_size < data.start_size:
        yield f"data.start_size = {data.start_size} is larger than data.image_size = {data.image_size}."
    if not decodes_always(data):
        yield 'data.start_size needs images that are decoded at every step: data.decode = "always".'
    if config.system.graph == "on":
        yield 'system.graph = "on" with data.start_size: a captured step has one size. Use graph = "off".'


def _filter(config: "Config") -> Iterator[str]:
    """Unlabelled images chosen by how sure a teacher is of them."""
    data = config.data
    filters = {"minimum_confidence": data.minimum_confidence, "per_class": data.per_class}
    for key, value in filters.items():
        if value and not (data.filter_store or data.store):
            yield f"data.{key} = {value} needs data.filter_store, the distributions that say how sure a teacher is."
    if data.filter_store and not any(filters.values()):
        yield "data.filter_store filters nothing: set data.minimum_confidence or data.per_class above 0."


def _data(config: "Config") -> Iterator[str]:
    data, system = config.data, config.system
    if data.channels == 2:
        yield "data.channels = 2: use 3, or 1 for a data set of grey images."
    if data.channels == 1 and data.source not in GREY:
        yield f'data.channels = 1 is for grey images, data.source = {one_of(GREY)}; "{data.source}" needs channels = 3.'
    if data.channels == 1 and data.rand_augment[0] > 0:
        yield (
            f"data.channels = 1 with data.rand_augment = {list(data.rand_augment)}: its operations are made for colours. "
            "Use channels = 3, or rand_augment = [0, 0]."
        )
    kind, share = data.noise
    if kind == "none" and share > 0:
        yield f'data.noise = ["none", {share}] has no kind of wrong label. Use "pair", "symmetric" or "brightness".'
    if data.batch_trusted > 0 and not _may_have_trusted(config):
        yield f"data.batch_trusted = {data.batch_trusted} needs data.trusted above 0."
    if config.finetune.steps > 0 and config.finetune.images == "trusted" and not _may_have_trusted(config):
        yield 'finetune.images = "trusted" needs data.trusted above 0.'
    if data.source in ("folder", *STREAMED) and not data.root:
        yield f'data.source = "{data.source}" needs data.root, the folder of your data.'
    if data.decode == "once" and data.source in STREAMED:
        yield f'data.decode = "once" is for data.source = "folder": images of "{data.source}" are decoded at every step.'
    if data.decode == "always" and data.source not in ("folder", *STREAMED):
        yield f'data.decode = "always" with data.source = "{data.source}": its images are not encoded. Use decode = "auto".'
    for key in ("crop_scale", "crop_ratio"):
        low, high = getattr(data, key)
        if low > high or high == 0:
            yield f"data.{key} = [{low}, {high}] is no range. Use the smaller first, and a larger one above 0."
    yield from _growth(config)
    yield from _filter(config)
    for key in ("batch_labelled", "batch_unlabelled", "batch_trusted"):
        batch: int = getattr(data, key)
        if batch % system.accumulate:
            yield f"data.{key} = {batch} is not a multiple of system.accumulate = {system.accumulate}."


def _system(config: "Config") -> Iterator[str]:
    system = config.system
    if system.offload and system.engine != "zero":
        yield 'system.offload = true needs system.engine = "zero".'
    if system.offload and system.zero_stage == 0:
        yield "system.offload = true with system.zero_stage = 0 has no shards. Use zero_stage = 1, 2 or 3."
    if system.engine == "zero" and system.graph == "on":  # passes as graphs of their own, not the step
        if system.zero_stage == 3:
            yield 'system.graph = "on" with system.zero_stage = 3: passes gather their parameters. Use graph = "auto".'
        if system.recompute:
            yield 'system.graph = "on" with engine = "zero" and recompute = true cannot work. Leave one of them out.'
    for role in trained_optimisers(config) if system.compile else ():
        if getattr(config, role).norm == "sync":
            yield f'system.compile = true with {role}.norm = "sync": a compiled norm knows one rank. Use norm = "group".'
    for key in ("recompute", "engine") if system.compile else ():
        if (value := getattr(system, key)) not in (False, "plain"):
            yield f"system.compile = true with system.{key} = {toml(value)}: choose one of the two."


def _refusals(config: "Config") -> Iterable[str]:
    for rule in (_run, _models, _weights, _inputs, _layers, _optimisers, _method, _feedback, _data, _system):
        yield from rule(config)


def refuse(config: "Config") -> None:
    """Raises ConfigError with the first reason why `config` cannot be run, if there is one."""
    for sentence in _refusals(config):
        raise ConfigError(sentence)
