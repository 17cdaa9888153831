"""The configurations under launch/configs, and which of them nobody has run."""

from pathlib import Path

EXAMPLES = sorted((Path(__file__).parents[1] / "launch" / "configs").glob("*.toml"))
NOT_RUN = {
    "cifar10_4k",
    "svhn_1k",
    "imagenet_10pct",
    "cifar10_reduced_mpl",
    "imagenet_reduced_b7",
    "imagenet_folder_example",
    "imagenet_efficientnet_l2_zero",
}
