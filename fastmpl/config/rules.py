"""Which keys go together. What cannot work is refused when the file is read, not at step 1,000.

A rule is a function from the configuration to the sentences that refuse it; those of the networks are in `network_rules`.
What only the machine can tell (a GPU, free memory, the number of images) is not asked here.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from fastmpl.config import network_rules
from fastmpl.config.meaning import (
    GREY,
    STREAMED,
    batch_sizes,
    decodes_always,
    feeds_back,
    may_have_trusted,
    trained_optimisers,
)
from fastmpl.config.wording import one_of, toml
from fastmpl.errors import ConfigError

if TYPE_CHECKING:
    from fastmpl.config.schema import Config

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
    yield from _gold_correction(config)
    if method.name == "reduced_mpl" and not config.data.store:
        yield 'method.name = "reduced_mpl" needs data.store, the stored distributions of a large teacher.'
    if config.data.store and method.name not in ("distillation", "reduced_mpl"):
        yield f'data.store is for method.name = "distillation" or "reduced_mpl", not "{method.name}".'


def _gold_correction(config: "Config") -> Iterator[str]:
    """Noisy and trusted labels that are learned together."""
    method = config.method
    if method.name != "gold_correction":
        for key in ("trusted_weight", "corruption"):
            if (value := getattr(method, key)) != type(method).model_fields[key].default:
                yield f'method.{key} = {toml(value)} is for method.name = "gold_correction", not "{method.name}".'
        return
    if not may_have_trusted(config):
        yield 'method.name = "gold_correction" needs data.trusted above 0, the number of clean images to set aside.'
    if method.supervised_weight != 1:
        yield (
            f'method.supervised_weight = {method.supervised_weight} with method.name = "gold_correction" weighs nothing. '
            "Use method.trusted_weight, the weight of the trusted images."
        )


def _feedback(config: "Config") -> Iterator[str]:
    feedback, method = config.feedback, config.method
    if feedback.kind == "off":  # one option switches the feedback off; the rest of the section then waits
        if feedback.control != "none":
            yield f'feedback.control = "{feedback.control}" with feedback.kind = "off" has nothing to spoil.'
        if feedback.every > 1:
            yield f'feedback.every = {feedback.every} with feedback.kind = "off" has no step to credit. Leave it out.'
        return
    if not feeds_back(config):
        if feedback != type(feedback)():
            yield (
                f'[feedback] is for method.name = "mpl" or "reduced_mpl", not "{method.name}". '
                'Leave the section out, or set feedback.kind = "off".'
            )
        return
    if feedback.every > config.run.steps:
        yield f"feedback.every = {feedback.every} is more than run.steps = {config.run.steps}: no step would credit."
    reason = IMPOSSIBLE.get((method.targets, feedback.kind))
    if reason:
        yield f'method.targets = "{method.targets}" with feedback.kind = "{feedback.kind}" {reason}.'
    if feedback.images == "trusted" and not may_have_trusted(config):
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
    if data.batch_trusted > 0 and not may_have_trusted(config):
        yield f"data.batch_trusted = {data.batch_trusted} needs data.trusted above 0."
    if config.finetune.steps > 0 and config.finetune.images == "trusted" and not may_have_trusted(config):
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
    for key, batch in batch_sizes(config).items():
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


RULES: Final = (
    _run,
    network_rules.refuse_models,
    network_rules.refuse_weights,
    network_rules.refuse_inputs,
    network_rules.refuse_layers,
    network_rules.refuse_optimisers,
    _method,
    _feedback,
    _data,
    _system,
)  # the first sentence is the one that is said


def _refusals(config: "Config") -> Iterable[str]:
    for rule in RULES:
        yield from rule(config)


def refuse(config: "Config") -> None:
    """Raises ConfigError with the first reason why `config` cannot be run, if there is one."""
    for sentence in _refusals(config):
        raise ConfigError(sentence)
