"""The experiments' own choices: arms that are legal, settings by validation images, and that nothing looks at tests."""

from typing import Any

import numpy as np
import pytest

from benchmarks.experiments import ablation, all_labels, biased_teacher, few_labels_pretrained, noisy_labels
from benchmarks.experiments.finetuning import Tuned
from benchmarks.records import load
from fastmpl.study.arms import Arm


def candidate(arm: str, weight: float, validation: float, test: float) -> noisy_labels.Candidate:
    outcome = {"last": {"student": {"validation": validation, "test": test}}}
    return noisy_labels.Candidate(arm, weight, Arm(f"{arm}-{weight}", noisy_labels.CONFIG), [outcome, outcome])


def test_settings_are_chosen_on_validation_images_and_never_on_test_images() -> None:
    case = noisy_labels.Case("pair", 0.45, 50, "perceptron")
    best = noisy_labels.best_of([candidate("a", 1.0, 0.7, 0.9), candidate("a", 3.0, 0.8, 0.6)])
    assert [(row["value"], row["weight"]) for row in noisy_labels.rows_of(case, best)] == [(60.0, 3.0)] * 2
    rows = noisy_labels.rows_finetuned(case, best, [[Tuned(0.01, 50, 0.85, 0.5), Tuned(0.03, 50, 0.1, 0.99)]] * 2)
    assert [(row["value"], row["weight"], row["rate"]) for row in rows] == [(50.0, 3.0, 0.01)] * 2


@pytest.mark.parametrize("arm", list(biased_teacher.ARMS))
def test_every_arm_of_r1_is_a_legal_configuration_with_its_seeds_store(arm: str, tmp_path: biased_teacher.Path) -> None:
    made = biased_teacher.arms_of("exchanged", 20, tmp_path, 10, [arm])[0].config_of(3, tmp_path)
    assert made.data.labels == made.data.batch_labelled == 20
    assert made.data.store == ("" if arm == "supervised" else str(tmp_path / "exchanged-3"))


def test_a_record_of_r1_is_measured_against_something_it_holds() -> None:
    assert biased_teacher.baseline_of(list(biased_teacher.ARMS)) == "distillation"
    assert biased_teacher.baseline_of(["feedback, exact", "calibrator"]) == "calibrator"
    assert biased_teacher.baseline_of(["feedback, scalar", "feedback, flipped"]) == "large teacher"


def test_every_arm_of_r7_is_legal_and_the_trusted_arm_learns_from_the_trusted_images(
    tmp_path: biased_teacher.Path,
) -> None:
    from fastmpl.data.split import split

    case = noisy_labels.Case("pair", 0.45, 50, "conv")
    made = {name: arm.config_of(0, tmp_path) for name, _, arm in noisy_labels.mpl_arms(case, {"run.steps": 5}, [1.0])}
    labels = np.random.default_rng(0).integers(0, 10, 40_000)
    for name in noisy_labels.BOTH:
        _, _, arm = noisy_labels.rival_arm(case, {"run.steps": 5}, name, 0.2, tmp_path / "noisy-{seed}")
        made[name] = arm.config_of(0, tmp_path)
    assert made[noisy_labels.GOLD].teacher.model == str(tmp_path / "noisy-0")
    splits = {
        name: split(
            labels,
            "0123456789",
            labelled=config.data.labels,
            trusted=config.data.trusted,
            unlabelled=config.data.unlabelled,
            validation=config.data.validation,
            seed=0,
        )
        for name, config in made.items()
    }
    np.testing.assert_array_equal(splits["trusted"].labelled, splits["MPL, exact"].trusted)
    np.testing.assert_array_equal(splits["trusted"].validation, splits["noisy"].validation)
    np.testing.assert_array_equal(splits[noisy_labels.GOLD].trusted, splits["MPL, exact"].trusted)
    assert made["trusted"].data.noise == ("none", 0.0)


@pytest.mark.slow
def test_the_record_of_an_ablation_holds_its_table(
    tmp_path: biased_teacher.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = noisy_labels.CONFIG.with_name("digits.toml").resolve()
    monkeypatch.chdir(tmp_path)
    brief = ["--run.steps", "2", "--student.model", "perceptron", "--teacher.model", "perceptron"]
    asked = [str(config), "--record", "few", "--seeds", "2", "--results", str(tmp_path)]
    assert ablation.main([*asked, *brief]) == 0
    record = load("few", tmp_path)
    arms = ["feedback off", "feedback exact", "feedback shuffled", "feedback flipped"]
    assert [row["arm"] for row in record.rows] == [arm for arm in arms for _ in range(2)]
    assert record.config["steps"] == 2


@pytest.mark.slow
def test_the_largest_experiments_go_through_on_runs_of_two_steps(tmp_path: biased_teacher.Path) -> None:
    """Needs Fashion-MNIST. No other test makes the calls between these scripts and the trainer."""
    short = ["--steps", "2", "--seeds", "2", "--output", str(tmp_path), "--results", str(tmp_path), "--jobs", "2"]
    noisy = ["--noises", "symmetric:0.6", "--trusted", "20", "--weights", "1", "--finetune-steps", "1"]
    assert noisy_labels.main([*short, *noisy]) == 0
    assert {row["arm"] for row in load("noisy_labels", tmp_path).rows} >= {
        noisy_labels.CLEAN,
        noisy_labels.EXACT,
        f"{noisy_labels.EXACT}, fine-tuned",
        *noisy_labels.BOTH,
    }
    assert all_labels.main(short) == 0
    assert {row["arm"] for row in load("all_labels", tmp_path).rows} == {"large teacher", *all_labels.ARMS}


def test_every_arm_of_few_labels_pretrained_is_legal(tmp_path: biased_teacher.Path) -> None:
    network, pictures, features = (tmp_path / name for name in ("network", "pictures", "features"))
    arms = few_labels_pretrained.arms_of(2, network, pictures, features, steps=9)
    assert len({arm.name for arm in arms}) == len(arms) == 1 + 7 * len(few_labels_pretrained.RATES)
    for arm in arms:
        made = arm.config_of(3, tmp_path)
        assert made.data.labels == made.data.batch_labelled == 10
        heads = "heads" in arm.name
        assert made.data.features == (str(features) if heads else "")
        assert made.student.pretrained == ("" if heads else str(network))
        assert made.teacher.pretrained == (str(network) if made.method.name == "mpl" and not heads else "")


def test_the_rate_of_a_seed_is_chosen_on_its_validation_images() -> None:
    def outcomes(*accuracies: tuple[float, float]) -> list[dict[str, Any]]:
        return [{"last": {"average": {"validation": v, "test": t}}} for v, t in accuracies]

    of_rates = {0.05: outcomes((0.6, 0.1), (0.5, 0.9)), 0.01: outcomes((0.5, 0.9), (0.5, 0.2))}
    chosen = few_labels_pretrained.choose_rates(of_rates)
    assert [(rate, outcome["last"]["average"]["test"]) for rate, outcome in chosen] == [(0.05, 0.1), (0.01, 0.2)]
    diverged: list[dict[str, Any] | None] = [None, None]
    assert [rate for rate, _ in few_labels_pretrained.choose_rates(of_rates | {0.05: diverged})] == [0.01, 0.01]
