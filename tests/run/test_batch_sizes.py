"""A batch that holds more images than there are is refused before the first step."""

from pathlib import Path

import pytest

from fastmpl.config import Config, load
from fastmpl.data.errors import DataError
from fastmpl.data.prepare import prepare
from fastmpl.run.preconditions import remark_on_finetuning, require_full_batches

DIGITS = Path(__file__).parents[2] / "launch" / "configs" / "digits.toml"  # 1,297 images
SMALL = {"data.labels": 20, "data.batch_labelled": 20, "data.validation": 50, "data.batch_unlabelled": 24}


def check(changes: dict[str, object]) -> Config:
    config = load(DIGITS, SMALL | changes)
    require_full_batches(config, prepare(config.data, 1).split)
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"data.unlabelled": 24, "data.trusted": 20, "data.batch_trusted": 20, "feedback.images": "trusted"},
        {"data.trusted": 10, "feedback.images": "trusted"},  # repeated to the labelled batch
        {"data.trusted": 10, "data.batch_trusted": 11},  # for which the feedback has no use
        {"data.unlabelled": 23, "method.name": "supervised", "feedback.kind": "off"},  # which uses none
    ],
    ids=str,
)
def test_batches_as_large_as_their_sets_are_accepted(changes: dict[str, object]) -> None:
    check(changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.labels": 10}, "data.batch_labelled = 20, and there are 10 labelled images to train on, after 50 for"),
        ({"data.unlabelled": 23}, "data.batch_unlabelled = 24, and there are 23 unlabelled images"),
        (
            {"method.name": "gold_correction", "teacher.model": "a", "data.trusted": 10, "data.batch_trusted": 11},
            "set data.batch_trusted to 10 or less",
        ),
        (
            {"data.trusted": 10, "data.batch_trusted": 11, "feedback.images": "trusted"},
            "set data.batch_trusted to 10 or less",
        ),
        ({"data.labels": 0, "data.validation": 1000, "data.batch_labelled": 298}, "there are 297 labelled images"),
        ({"data.labels": 0, "data.validation": 1000, "data.batch_unlabelled": 298}, "there are 297 unlabelled images"),
    ],
    ids=str,
)
def test_a_larger_batch_is_refused_with_the_largest_that_fits(changes: dict[str, object], said: str) -> None:
    with pytest.raises(DataError) as refused:
        check(changes)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"finetune.batch": 19, "finetune.lr": 0.02}, []),
        (
            {"finetune.batch": 512, "finetune.lr": 0.02},
            ["there are 10 trusted images: a step computes each of them 51"],
        ),
        ({"finetune.batch": 10}, [" times smaller than student.lr: 5 steps may change little"]),
        ({"finetune.steps": 0}, []),
    ],
    ids=str,
)
def test_fine_tuning_by_defaults_for_many_images_is_remarked_on(changes: dict[str, object], said: list[str]) -> None:
    config = check({"data.trusted": 10, "finetune.steps": 5, "finetune.images": "trusted"} | changes)
    found = remark_on_finetuning(config, prepare(config.data, 1).split)
    assert len(found) == len(said)
    assert all(words in sentence for words, sentence in zip(said, found, strict=True))
