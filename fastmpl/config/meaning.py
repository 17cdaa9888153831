"""What a configuration means: which networks it trains, whether it feeds back, how its images and steps are made."""

import re
from typing import TYPE_CHECKING, Final, Protocol

from fastmpl.config.optimisers import ABILITIES

if TYPE_CHECKING:
    from fastmpl.config.schema import Config

STREAMED: Final = ("file_list", "webdataset", "tfrecord")  # sources whose images are decoded at every step
HEADS: Final = ("linear", "perceptron", "perceptron_tanh")  # networks of a vector, such as points and stored features
GREY: Final = ("digits", "fashion_mnist")  # sources of images with one channel
NOT_CAPTURABLE: Final = (
    "networks in shards, images that grow or an optimiser that takes its rate from the host forbid it"
)


def names_own_model(model: str) -> bool:
    """Whether `model` is a network of fastmpl: conv, linear, a perceptron, or wrn_DEPTH_WIDTH with DEPTH = 6 n + 4."""
    wide = re.fullmatch(r"wrn_(\d{1,4})_(\d{1,3})", model)
    if wide:
        return int(wide[1]) >= 10 and int(wide[1]) % 6 == 4 and int(wide[2]) >= 1
    return model in ("conv", *HEADS)


def names_run(model: str) -> bool:
    """Whether `model` is the folder of a run: neither a network of fastmpl nor one of timm."""
    return not names_own_model(model) and not model.startswith("timm:")


def learns_unlabelled(config: "Config") -> bool:
    """Whether the method learns from unlabelled images; the others are spared making them."""
    return config.method.name not in ("supervised", "gold_correction")


def feeds_back(config: "Config") -> bool:
    """Whether the teacher learns from the student's validation loss."""
    return config.method.name in ("mpl", "reduced_mpl") and config.feedback.kind != "off"


def feeds_back_from_trusted(config: "Config") -> bool:
    """Whether the student's validation loss is that of trusted images."""
    return feeds_back(config) and config.feedback.images == "trusted"


def takes_trusted(config: "Config") -> bool:
    """Whether a step needs trusted images; the others are spared making them. Fine-tuning opens its own."""
    return feeds_back_from_trusted(config) or config.method.name == "gold_correction"


def estimates_corruption(config: "Config") -> bool:
    """Whether a run begins by estimating how labels are confused, by the run that `teacher.model` names."""
    return config.method.name == "gold_correction" and config.method.corruption == "estimated"


def batch_sizes(config: "Config") -> dict[str, int]:
    """The images of each part that a step takes, over all ranks, by their key in [data]."""
    data = config.data
    sizes = {"batch_labelled": data.batch_labelled}
    if learns_unlabelled(config):
        sizes["batch_unlabelled"] = data.batch_unlabelled
    if takes_trusted(config):
        sizes["batch_trusted"] = data.batch_trusted or data.batch_labelled
    return sizes


def without_feedback(config: "Config") -> "Config":
    """The configuration of the steps between two that credit the labels, which `feedback.every` spaces."""
    feedback = config.feedback.model_copy(update={"kind": "off", "every": 1})
    return config.model_copy(update={"feedback": feedback})


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


def is_capturable(config: "Config") -> bool:
    """Whether a step can be one CUDA graph: its images have one size, and the optimisers allow it."""
    plain = config.system.engine == "plain"
    return (
        plain
        and not config.data.start_size
        and all(ABILITIES[name].captured for name in trained_optimisers(config).values())
    )


def may_have_trusted(config: "Config") -> bool:
    """Whether there can be trusted images: a user's folder may have some of its own."""
    return config.data.trusted > 0 or config.data.source in ("folder", *STREAMED)


class _Source(Protocol):
    """The keys of [data] that say where images come from."""

    @property
    def source(self) -> str: ...
    @property
    def decode(self) -> str: ...


def decodes_always(data: _Source) -> bool:
    """Whether images are decoded at every step, rather than once before training."""
    return data.source in STREAMED or (data.source == "folder" and data.decode == "always")
