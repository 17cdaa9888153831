"""Every key of the configuration: its type, default, bounds and one sentence. The single source of all four.

Leaves out what needs two keys (`rules`), and how a file is read (`load`). Types are strict: "0.1" is no number. Keys
declared with `_rare` are shown by --help-all alone.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Source = Literal[
    "digits",
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "svhn",
    "two_moons",
    "folder",
    "file_list",
    "webdataset",
    "tfrecord",
]
Decode = Literal["auto", "once", "always"]
Noise = Literal["none", "pair", "symmetric", "brightness"]
Norm = Literal["batch", "sync", "group"]
Optimiser = Literal[
    "sgd", "nesterov", "adamw", "lamb", "fastmpl:sgd_ema", "apex:FusedSGD", "apex:FusedAdam", "apex:FusedLAMB"
]
MethodName = Literal["supervised", "distillation", "pseudo_label", "uda", "mpl", "reduced_mpl", "gold_correction"]
Targets = Literal["soft", "sampled", "argmax"]
FeedbackKind = Literal["exact", "per_example", "scalar", "off"]
CleanImages = Literal["labelled", "trusted"]
ADAPTER = r"^$|^lora:([1-9]|[1-9]\d{1,2}|10[01]\d|102[0-4])$"  # ranks of 1 to 1,024
Interpolation = Literal["auto", "bilinear", "bicubic"]
Count = Annotated[int, Field(ge=0, le=10**9)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
Channels = Annotated[tuple[Share, Share, Share], Field(strict=False)]  # a number of red, of green and of blue
Rate = Annotated[float, Field(ge=0, le=1000)]
Temperature = Annotated[float, Field(ge=0.01, le=100)]


def _key(default: Any, sentence: str, **options: Any) -> Any:
    return Field(default, description=sentence, **options)


def _rare(default: Any, sentence: str, **options: Any) -> Any:
    return Field(default, description=sentence, json_schema_extra={"rare": True}, **options)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RunConfig(_Section):
    """The run: its name, length and rhythm."""

    name: str = _key("fashion_mnist_500", "Name of the run's folder.", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    output: str = _key("runs", "Folder that holds the runs.", min_length=1)
    seed: int = _key(0, "Seed of every random draw.", ge=0, lt=2**31)
    steps: Positive = _key(3000, "Steps of training, each one update of the student.")
    log_every: Positive = _rare(50, "Steps between two lines of metrics.")
    evaluate_every: Positive = _key(500, "Steps between two evaluations.")
    checkpoint_every: Positive = _rare(500, "Steps between two checkpoints.")
    select_by: Literal["accuracy", "macro_recall", "macro_f1", "loss"] = _rare(
        "accuracy", "Score on the validation images by which the student that is kept is selected."
    )
    patience: Count = _rare(0, "Evaluations without a better student after which training stops; 0: never.")
    analyse: bool = _rare(
        False,
        "Whether evaluations also measure training images: accuracies, and the distributions the teacher gives them.",
    )
    keep: int = _rare(2, "Checkpoints kept besides the best.", ge=2, le=10**6)
    trackers: str = _rare(
        "auto",
        "Where curves go besides metrics.jsonl: tensorboard, wandb, mlflow, with commas between; auto: tensorboard.",
        pattern=r"^(auto|(tensorboard|wandb|mlflow)(,(tensorboard|wandb|mlflow))*|)$",
    )


class DataConfig(_Section):
    """The images: where they come from, how they are split, how their two views are made."""

    source: Source = _key("fashion_mnist", "Data set, or the form of your own.")
    root: str = _key("", "Folder with labelled/, unlabelled/ and test/, or where data sets are kept.")
    decode: Decode = _rare(
        "auto", "Whether images are decoded once, into a cache, or at every step; auto: a folder's once, others always."
    )
    labels: Count = _key(500, "Labelled images, balanced over the classes; 0: all.")
    unlabelled: Count = _key(0, "Unlabelled images; 0: all that are left.")
    trusted: Count = _key(
        0, "Clean labelled images set aside for feedback or fine-tuning; 0: all of a folder's trusted/."
    )
    noise: Annotated[tuple[Noise, Share], Field(strict=False)] = _key(
        ("none", 0.0), "Kind and share of wrong labels put on the labelled images, for experiments."
    )
    validation: Count = _key(500, "Labelled images that are never trained on, to select a checkpoint by.")
    image_size: int = _key(
        28, "Height and width of the images in pixels; 0: those of the pretrained network, else 28.", ge=0, le=4096
    )
    channels: int = _rare(3, "Channels of the networks' input: 3, or 1 for a data set of grey images.", ge=1, le=3)
    batch_labelled: Positive = _key(64, "Labelled images a step, over all ranks.")
    batch_unlabelled: Positive = _key(448, "Unlabelled images a step, over all ranks.")
    batch_trusted: Count = _rare(0, "Trusted images a step, over all ranks; 0: as batch_labelled.")
    flip: bool = _rare(True, "Whether both views are mirrored at random.")
    shift: Share = _key(0.125, "Largest random shift of both views, as a share of the side; 0: off.")
    rand_augment: Annotated[
        tuple[Annotated[int, Field(ge=0, le=16)], Annotated[int, Field(ge=0, le=30)]], Field(strict=False)
    ] = _key((2, 10), "RandAugment's operations and magnitude for the strong view; 0 operations: off.")
    cutout: Share = _key(0.5, "Side of the square cut out of the strong view, as a share of the image's; 0: off.")
    crop_scale: Annotated[tuple[Share, Share], Field(strict=False)] = _rare(
        (0.08, 1.0), "Smallest and largest share of a picture that a random crop takes, where decoded at every step."
    )
    crop_ratio: Annotated[tuple[Ratio, Ratio], Field(strict=False)] = _rare(
        (0.75, 4 / 3), "Smallest and largest width over height of a random crop."
    )
    centre_crop: Share = _rare(
        0.875,
        "Side of the square that is evaluated, as a share of the shorter side, where decoded at every step; "
        "0: that of the pretrained network, else 0.875.",
    )
    interpolation: Interpolation = _rare(
        "auto", "How evaluated images are resized; auto: as the pretrained network expects it, else bilinear."
    )
    start_size: Annotated[int, Field(ge=0, le=4096)] = _rare(0, "Image size at the first step, that grows; 0: off.")
    grow_steps: Count = _rare(0, "Steps until start_size has grown to image_size.")
    prefetch: int = _rare(2, "Batches made ahead of the step, where decoded at every step.", ge=1, le=64)
    decoder_load: Share = _rare(0.65, "Share of JPEGs for a GPU's decoding engine, where it has one.")
    features: str = _rare(
        "", "Folder of stored features (fastmpl probe), which take the images' place for networks that are heads."
    )
    store: str = _rare("", "Folder of stored distributions (fastmpl distill), for distillation and reduced_mpl.")
    minimum_confidence: BelowOne = _rare(
        0.0, "Probability of its likeliest class from which an unlabelled image is used; 0: all are."
    )
    per_class: Count = _rare(0, "Most unlabelled images of one likeliest class, the surest of them; 0: any number.")
    filter_store: str = _rare("", "Folder of stored distributions that say how sure; empty: data.store.")


class NetworkConfig(_Section):
    """A network and how it learns."""

    model: str = _key("wrn_28_2", 'Network: wrn_DEPTH_WIDTH, conv, perceptron, linear, or "timm:NAME".', min_length=1)
    pretrained: str = _key(
        "", 'Weights to start from: a .safetensors or .pth file, a folder of timm, a run, or "hub"; "": random ones.'
    )
    adapter: str = _rare(
        "", 'Low-rank adapters that are trained in the place of the weights, as "lora:8"; "": none.', pattern=ADAPTER
    )
    mean: Channels = _rare(
        (0.0, 0.0, 0.0), "Mean of the inputs' channels, of pixels in [0, 1]; read where std is above 0."
    )
    std: Channels = _rare(
        (0.0, 0.0, 0.0), "Deviation of the inputs' channels; 0: that of the pretrained network, else of the data."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = _rare(
        1.0, "Factor of the learning rate from each layer to the one before it; 1: one rate for all."
    )
    freeze: int = _rare(0, "First layers that stay as they start; -1: all but the classifier.", ge=-1, le=10**6)
    freeze_steps: Count = _rare(0, "Steps after which frozen layers learn too; 0: they never do.")
    head_lr: Annotated[float, Field(gt=0, le=1000)] = _rare(1.0, "Factor of the classifier's learning rate.")
    dropout: BelowOne = _rare(0.0, "Share of units dropped.")
    norm: Norm = _rare("batch", "Normalisation: statistics of a rank's batch, of all ranks' batches, or of groups.")
    width: int = _rare(128, "Units of a perceptron's hidden layers, or channels of conv's last one.", ge=1, le=65536)
    depth: int = _rare(5, "Linear layers of a perceptron.", ge=1, le=1000)
    optimiser: Optimiser = _key("sgd", "Optimiser.")
    lr: Rate = _key(0.05, "Learning rate after the warm-up.")
    momentum: BelowOne = _rare(0.9, "Momentum, or AdamW's first decay.")
    weight_decay: Share = _key(5e-4, "Weight decay, not on norms and biases.")
    clip: Annotated[float, Field(ge=0, le=1e6)] = _key(0.0, "Largest norm of the whole gradient; 0: off.")
    warmup: Count = _rare(100, "Steps of linear warm-up.")
    wait: Count = _rare(0, "Steps at rate 0 before the warm-up.")
    schedule: Literal["cosine", "constant"] = _rare("cosine", "Learning rate after the warm-up.")


class TeacherConfig(NetworkConfig):
    """The teacher. For distillation and pseudo labels `model` may also be the folder of a run. For gold_correction it is
    the folder of a run that learned the noisy labels. For reduced_mpl it is a perceptron over stored distributions: `width`
    and `depth` are read, `model` is not.
    """


class StudentConfig(NetworkConfig):
    """The student, the network that a run is for."""

    average: BelowOne = _key(0.995, "Decay of the moving average of the weights, evaluated beside them; 0: off.")
    label_smoothing: BelowOne = _rare(0.0, "Smoothing of the targets that the student learns from.")


class MethodConfig(_Section):
    """The method: what the student learns from."""

    name: MethodName = _key("mpl", "Method.")
    targets: Targets = _key("soft", "What the student learns of the teacher's distribution: all, a draw, or the top.")
    label_view: Literal["strong", "weak"] = _rare("strong", "View of an image that the teacher labels.")
    temperature: Temperature = _key(1.0, "Temperature of the teacher's distribution.")
    threshold: BelowOne = _key(0.0, "Confidence below which pseudo_label leaves an image out.")
    label_smoothing: BelowOne = _rare(0.0, "Smoothing of the true labels in the supervised loss.")
    supervised_weight: Rate = _rare(1.0, "Weight of the supervised loss.")
    trusted_weight: Annotated[float, Field(gt=0, le=1000)] = _rare(
        1.0, "Weight of the trusted images' loss beside that of the noisy labels, for gold_correction."
    )
    corruption: Literal["estimated", "identity"] = _rare(
        "estimated",
        "What gold_correction takes labels to be: confused as teacher.model says of the trusted images, or right.",
    )


class FeedbackConfig(_Section):
    """What the teacher learns from the student: how its labels changed the student's loss on labelled images."""

    kind: FeedbackKind = _key("exact", "How the student's loss reaches the teacher.")
    images: CleanImages = _key("labelled", "Images that the student's loss is measured on.")
    weight: Rate = _key(1.0, "Weight of the feedback; 1: the true gradient, for every kind.")
    every: Positive = _rare(1, "One step in so many credits the labels, with so many times the weight; 1: all.")
    control: Literal["none", "shuffled", "flipped"] = _rare("none", "Control experiment: spoil the feedback.")
    baseline: BelowOne = _rare(0.0, "Decay of the moving average taken off the scalar feedback; 0: off.")
    tangent: Literal["jvp", "difference"] = _rare("jvp", "Directional derivative: forward mode, or a difference.")
    depth: Count = _rare(0, "Last blocks of the student that the feedback goes through; 0: the whole network.")


class UdaConfig(_Section):
    """Consistency of a network between the two views of an image."""

    weight: Rate = _key(8.0, "Weight of the consistency loss; 0: off.")
    temperature: Temperature = _rare(0.7, "Temperature of the weak view's distribution.")
    threshold: BelowOne = _key(0.6, "Confidence below which an image is left out.")
    ramp: Count = _rare(1000, "Steps over which the weight grows to its value.")


class FinetuneConfig(_Section):
    """Training of the student on labelled images at the end."""

    steps: Count = _key(0, "Steps; 0: off.")
    images: CleanImages = _key("labelled", "Images to fine-tune on.")
    lr: Rate = _rare(3e-5, "Learning rate.")
    batch: Positive = _rare(512, "Images a step, over all ranks.")


class SystemConfig(_Section):
    """How a step is executed; none of it changes the mathematics."""

    precision: Literal["float32", "bf16"] = _key("float32", "Precision of the arithmetic; weights are float32.")
    tf32: Literal["training", "off"] = _rare(
        "training",
        "TF32 in float32 arithmetic: in all passes but those whose losses or logits are compared, or nowhere.",
    )
    benchmark: bool = _rare(
        False, "Whether cuDNN times its algorithms and keeps the fastest: more memory, and no repeatable rounding."
    )
    attention: Literal["fused", "math"] = _rare(
        "fused",
        "Attention of transformers: one operator that keeps no scores, but in the tangent; or products and softmax always.",
    )
    channels_last: bool = _rare(True, "Whether images are stored with the channels last.")
    schedule: Literal["split", "joint"] = _key("split", "Separate passes, or one over all images of a network.")
    deferred: bool = _rare(False, "Whether the teacher's graph is built after the student's step, to save memory.")
    recompute: bool = _rare(False, "Whether blocks are computed again in the backward pass, to save memory.")
    accumulate: Positive = _rare(1, "Micro-batches a step.")
    graph: Literal["auto", "on", "off"] = _rare(
        "auto", "Whether a step is one CUDA graph, on a CPU a tape of its operators; of shards, its passes if on."
    )
    compile: bool = _rare(False, "Whether networks are compiled.")
    kernels: Literal["auto", "triton", "native", "reference"] = _rare("auto", "Implementation of the fused operations.")
    engine: Literal["plain", "zero"] = _rare("plain", "Copies of the networks on each rank, or shards by DeepSpeed.")
    zero_stage: int = _rare(1, "What DeepSpeed shards: nothing, optimiser, gradients, parameters.", ge=0, le=3)
    offload: bool = _rare(False, "Whether shards of the optimiser live in the host's memory.")
    threads: int = _rare(0, "CPU threads of a rank; 0: cores / ranks.", ge=0, le=4096)
    timeout: int = _rare(120, "Seconds after which a rank that does not answer is given up.", ge=1, le=86400)
