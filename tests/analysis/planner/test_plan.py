"""A plan made of a configuration alone predicts the memory of the step, what fits, and refuses what it cannot know."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmpl.analysis import planner
from fastmpl.analysis.accounting import measure
from fastmpl.analysis.fake_run import FakeRun
from fastmpl.analysis.planner import cost, text
from fastmpl.analysis.planner.cost import Shape
from fastmpl.analysis.planner.plan import Fit, TangentParts, divide_tangent, size_of
from fastmpl.cli import main
from fastmpl.config import Config, ConfigError, load, save

DIGITS = Path(__file__).parents[3] / "launch/configs/digits.toml"
GIB = 2**30


def config(**changes: Any) -> Config:
    small = {"data.batch_labelled": 16, "data.batch_unlabelled": 64}
    return load(DIGITS, small | {key.replace("__", "."): value for key, value in changes.items()})


def peak_of(config: Config, classes: int = 10) -> int:
    """Bytes of the step itself, on fake tensors."""
    with FakeTensorMode():
        run = FakeRun(config, classes, (3, 8, 8))
        run.step()
        return measure(run.step, *run.list_held()).peak_bytes


@pytest.mark.parametrize(
    ("schedule", "changes"),
    [
        ("split", {}),
        ("split, deferred", {"system__deferred": True}),
        ("split", {"system__precision": "bf16", "feedback__tangent": "difference", "feedback__kind": "off"}),
        ("joint", {"system__schedule": "joint", "feedback__kind": "off"}),
    ],
)
def test_the_peak_with_copies_is_that_of_the_step(schedule: str, changes: dict[str, Any]) -> None:
    found = planner.plan_memory(config(**changes), ranks=1, memory=GIB, schedules=(schedule,)).fits[0]
    assert found.sharding == "copies"
    assert found.peak == pytest.approx(peak_of(config(**changes)), rel=0.05)


def test_credit_at_some_steps_has_the_peak_of_a_step_that_credits_and_the_mean_of_the_arithmetic() -> None:
    def plan(**changes: Any) -> planner.MemoryPlan:
        return planner.plan_memory(config(**changes), ranks=1, memory=GIB, schedules=("split",))

    often, seldom, never = plan(), plan(feedback__every=4), plan(feedback__kind="off")
    assert seldom.fits == often.fits
    one, few, none = (plan.costs["split"].flops for plan in (often, seldom, never))
    assert few == pytest.approx((one + 3 * none) / 4)
    assert none < few < one


def test_the_largest_batch_fits_and_a_larger_one_does_not() -> None:
    memory = 100 * 2**20
    (fit, *_) = planner.plan_memory(config(), ranks=1, memory=memory, schedules=("split",)).fits
    assert fit.times > 2
    sizes = {}
    for share in (0.98, 1.05):
        labelled, unlabelled = (round(n * fit.times * share) for n in (16, 64))
        sizes[share] = peak_of(config(data__batch_labelled=labelled, data__batch_unlabelled=unlabelled))
    assert sizes[0.98] <= memory < sizes[1.05]


def test_more_ranks_hold_and_compute_less() -> None:
    one, four = (planner.plan_memory(config(), ranks=n, memory=GIB, schedules=("split",)) for n in (1, 4))
    assert four.batches == {"batch_labelled": 4, "batch_unlabelled": 16}
    assert four.costs["split"].flops == pytest.approx(one.costs["split"].flops / 4, rel=0.01)
    assert four.states["ZeRO 3"].device < one.states["ZeRO 3"].device / 3.9


def test_half_precision_halves_activations_and_no_state() -> None:
    full, half = (
        planner.plan_memory(config(system__precision=p), ranks=1, memory=GIB, schedules=("split",))
        for p in ("float32", "bf16")
    )
    assert half.costs["split"].activations < 0.8 * full.costs["split"].activations
    assert half.states == full.states


def test_a_tangent_in_parts_is_planned() -> None:
    shape = Shape(10, (3, 160, 160))
    vit = config(student__model="timm:test_vit", data__image_size=160, data__batch_unlabelled=4096)
    assert divide_tangent(vit, shape, ranks=2) == (2, 1024)
    assert divide_tangent(vit, shape, ranks=4) == (1, 1024)
    assert divide_tangent(config(), Shape(10, (3, 8, 8)), ranks=1) == (1, 64)  # batch norm
    scalar = config(method__targets="sampled", feedback__kind="scalar")
    assert divide_tangent(scalar, shape, ranks=1) is None


def test_parts_of_the_tangent_are_told_where_there_are_several() -> None:
    supervised = config(method__name="supervised", feedback__kind="off")
    found = planner.plan_memory(supervised, ranks=1, memory=GIB)
    line = "tangent   in 2 parts of at most 1,024 images, to bound its temporaries"
    for tangent in (None, TangentParts(1, 64)):
        assert not any("tangent" in line for line in planner.format_plan(found._replace(tangent=tangent)))
    assert line in planner.format_plan(found._replace(tangent=TangentParts(2, 1024)))


def test_lamb_leaves_copies_alone() -> None:
    assert list(
        planner.plan_memory(config(student__optimiser="lamb"), ranks=2, memory=GIB, schedules=("split",)).states
    ) == ["copies"]


def test_one_network_has_one_schedule() -> None:
    found = planner.plan_memory(config(method__name="supervised", feedback__kind="off"), ranks=1, memory=GIB)
    assert list(found.networks) == ["student"]
    assert list(found.costs) == ["one network"]


@pytest.mark.parametrize("classes", [10, 2000])  # whose corruption is 16 MB
def test_gold_correction_is_planned_with_its_trusted_images_and_without_unlabelled_ones(classes: int) -> None:
    changes = {"method__name": "gold_correction", "feedback__kind": "off", "teacher__model": "runs/a"}
    settings = config(**changes, data__trusted=50, data__batch_trusted=32)
    found = planner.plan_memory(settings, ranks=1, memory=GIB, classes=classes)
    assert found.batches == {"batch_labelled": 16, "batch_trusted": 32}
    assert found.fits[0].peak == pytest.approx(peak_of(settings, classes), rel=0.05)


def test_the_largest_layer_is_that_of_one_module() -> None:
    import torch

    assert size_of(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))) == (16 + 10, 16, 0)


def test_frozen_parameters_have_no_gradient_no_moments_and_no_average() -> None:
    whole, frozen = (
        planner.plan_memory(config(student__freeze=n), ranks=2, memory=GIB, schedules=("split",)) for n in (0, 2)
    )
    size = frozen.networks["student"]
    assert 0 < size.frozen < size.elements == whole.networks["student"].elements
    for sharding, part in (("copies", 1), ("ZeRO 1", 2)):
        before, after = whole.states[sharding], frozen.states[sharding]
        assert after.parameters == before.parameters
        assert before.gradients - after.gradients == 4 * size.frozen
        assert before.optimiser - after.optimiser == pytest.approx(4 * size.frozen / part, abs=8)
        assert before.average - after.average == pytest.approx(4 * size.frozen / part, abs=8)
        assert before.lasting > after.lasting
    assert "ZeRO 3" in whole.states and "ZeRO 3" not in frozen.states
    assert any(f"{size.frozen:,} are frozen" in line for line in planner.format_plan(frozen))
    # with no graph over the frozen layers, a step has fewer activations
    assert frozen.costs["split"].activations < whole.costs["split"].activations


def test_what_a_configuration_alone_does_not_tell_is_asked_for() -> None:
    folder = load(DIGITS, {"data.source": "folder", "data.root": "a"})
    with pytest.raises(ConfigError, match=r"a is not there.* Add --classes N"):
        planner.plan_memory(folder, ranks=1, memory=GIB)
    with pytest.raises(ConfigError, match="gives 32 ranks less than an image each"):
        planner.plan_memory(config(), ranks=32, memory=GIB)


def test_the_verb_prints_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(DIGITS), "--ranks", "2", "--memory", "0.0001"]) == 0
    shown = capsys.readouterr().out
    assert "student" in shown and "ZeRO 3" in shown and "does not fit" in shown
    assert "recommended  nothing fits" in shown
    assert max(map(len, shown.splitlines())) < 160


def test_schedules_cost_what_each_costs_by_itself() -> None:
    """All schedules share their networks, which changes no count."""
    changes = config(system__schedule="joint", student__model="conv", student__width=8)
    together = planner.plan_memory(changes, ranks=2, memory=GIB).costs
    assert len(together) == 5
    for name in ("joint, deferred", "split", "split, deferred, recomputed"):
        assert planner.plan_memory(changes, ranks=2, memory=GIB, schedules=(name,)).costs[name] == together[name]


@pytest.mark.parametrize("kind", ["off", "scalar"])
def test_a_marked_batch_counts_two_sizes_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = config(feedback__kind=kind, method__targets="sampled", student__model="conv", student__width=7)
    marked = planner.plan_memory(changes, ranks=1, memory=GIB).costs
    monkeypatch.setattr(cost, "_has_tangent", lambda config: True)
    monkeypatch.setattr(cost, "_runs_on_real_tensors_alone", lambda config: False)
    assert planner.plan_memory(changes, ranks=1, memory=GIB).costs == marked


def test_feedback_in_half_precision_costs_what_it_costs_in_full() -> None:
    """Its forward-mode pass cannot be counted in bf16, and is estimated from a forward pass."""
    wide = {"student__model": "conv", "student__width": 32, "teacher__width": 32, "data__image_size": 8}
    full, half = (
        planner.plan_memory(config(system__precision=p, **wide), ranks=1, memory=GIB, schedules=("split",)).costs[
            "split"
        ]
        for p in ("float32", "bf16")
    )
    # images have no tangent, so that the first layer costs less than the estimate says
    assert half.flops == pytest.approx(full.flops, rel=0.04)


def make_plan(peaks: dict[tuple[str, str], float], flops: dict[str, int]) -> planner.MemoryPlan:
    """A plan of 100 bytes with these peaks."""
    fits = [Fit(sharding, schedule, int(peak), 1.0) for (sharding, schedule), peak in peaks.items()]  # type: ignore[arg-type]
    costs = {name: cost.Cost(1, 1, count) for name, count in flops.items()}
    return planner.MemoryPlan(2, 100, {}, {}, {}, {}, costs, fits, None, 10, {})


@pytest.mark.parametrize(
    ("peaks", "chosen"),
    [
        ((50, 40, 45, 35), ("copies", "split")),  # both fit: the least sharding
        ((95, 85, 45, 35), ("ZeRO 1", "split")),  # a setting must leave room; arithmetic costs more than sharding
        ((95, 95, 45, 35), ("copies", "split, deferred")),
        ((95, 95, 95, 95), None),
    ],
)
def test_the_cheapest_setting_that_fits_is_recommended(peaks: tuple[int, ...], chosen: tuple[str, str] | None) -> None:
    places = [(sharding, schedule) for schedule in ("split", "split, deferred") for sharding in ("copies", "ZeRO 1")]
    found = planner.recommend(make_plan(dict(zip(places, peaks, strict=True)), {"split": 10, "split, deferred": 12}))
    assert (None if found is None else found.fit[:2]) == chosen
    if chosen == ("ZeRO 1", "split"):
        assert found is not None
        assert found.keys == {
            "system.schedule": "split", "system.deferred": False, "system.recompute": False,
            "system.engine": "zero", "system.zero_stage": 1, "system.offload": False,
        }  # fmt: skip


def test_recommended_keys_are_a_configuration() -> None:
    found = planner.recommend(planner.plan_memory(config(), ranks=2, memory=GIB, schedules=("split",)))
    assert found is not None
    load(DIGITS, found.keys)


def test_keys_that_the_configuration_has_otherwise_are_to_be_set() -> None:
    found = make_plan({("copies", "split, deferred"): 50}, {"split, deferred": 12})
    deferred = config(system__deferred=True)
    said = {
        name: list(planner.format_recommendation(found, planner.recommend(found), given))[1]
        for name, given in (("split", config()), ("deferred", deferred))
    }
    assert said["split"] == "set          --system.deferred true"
    assert said["deferred"].endswith("nothing: the configuration is this setting already")


def test_hours_come_from_a_peak_and_a_share() -> None:
    """0.3 of 989 TFLOP/s: 296.7 TFLOP take a second, and 7,200 such steps two hours."""
    half = config(system__precision="bf16")
    pace = planner.pace_at_share(half, round(296.7e12), "h100", 0.3)
    assert pace.seconds == pytest.approx(1)
    assert "2.0 hours for 7,200 steps" in planner.format_duration(7200, pace)
    assert "30 % of the bf16 peak of the H100, 989 TFLOP/s" in planner.format_duration(7200, pace)
    for gpu, share in (("gtx", 0.3), ("h100", 0.0), ("h100", 1.5)):
        with pytest.raises(ConfigError):
            planner.pace_at_share(half, 1, gpu, share)


def test_hours_come_from_a_run_that_was_measured(tmp_path: Path) -> None:
    save(config(student__width=7), tmp_path / "config.toml")
    line = '{"kind": "train", "step": %d, "seconds": %.1f}\n'
    (tmp_path / "metrics.jsonl").write_text(line % (50, 4.0) + line % (150, 54.0))
    pace = planner.pace_of_run(config(run__steps=5), tmp_path, 2)
    assert (pace.seconds, pace.sent_by) == (pytest.approx(0.5), 2)
    assert "does not say on how many ranks" in pace.source  # there is no checkpoint
    assert "student.width" in pace.source and "run.steps" not in pace.source
    (tmp_path / "metrics.jsonl").write_text(line % (50, 4.0))
    with pytest.raises(ConfigError, match="no two lines"):
        planner.pace_of_run(config(), tmp_path, 1)


def test_a_run_on_other_ranks_had_another_share_of_the_batch(tmp_path: Path) -> None:
    save(config(), tmp_path / "config.toml")
    line = '{"kind": "train", "step": %d, "seconds": %.1f}\n'
    (tmp_path / "metrics.jsonl").write_text(line % (50, 4.0) + line % (150, 54.0))
    step = tmp_path / "checkpoints" / "step-150"
    step.mkdir(parents=True)
    files: dict[str, object] = {"facts.json": {}, "rank-0.safetensors": {}, "rank-1.safetensors": {}}
    (step / "manifest.json").write_text(json.dumps({"schema": 3, "step": 150, "ranks": 2, "files": files}))
    same, more, fewer = (planner.pace_of_run(config(), tmp_path, ranks) for ranks in (2, 8, 1))
    assert [pace.seconds for pace in (same, more, fewer)] == pytest.approx([0.5, 0.125, 1.0])
    assert [pace.sent_by for pace in (same, more, fewer)] == [2, 2, 2]
    assert same.source.endswith("on 2 ranks") and more.source.endswith("on 2 ranks and divided among 8")


def test_classes_come_from_the_data_where_it_is_there(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "labelled" / name / "1.png")
    folder = load(DIGITS, {"data.source": "folder", "data.root": str(tmp_path)})
    assert planner.count_classes(folder) == (3, f"in {tmp_path}")
    gone = {"data.source": "folder", "data.root": "gone", "student.model": "timm:resnet18"}
    assert planner.count_classes(load(DIGITS, gone)).number == 1000
    assert planner.count_classes(folder, 7).number == 7


def test_rows_that_do_not_differ_are_one() -> None:
    rows = [["a", "1"], ["b", "1"], ["c", "2"], ["d", "1"], ["e", "1"], ["f", "1"]]
    assert text._merge(rows) == [["a = b", "1"], ["c", "2"], ["d ... f", "1"]]
    assert text._join_names(["ZeRO 1, offload", "ZeRO 2, offload", "ZeRO 3, offload"]) == "ZeRO 1 ... 3, offload"
    assert text._join_names(["split, deferred", "split, deferred, recomputed"]) == "split, deferred = recomputed"
    assert text._join_names(["copies", "ZeRO 1"]) == "copies = ZeRO 1"


@pytest.mark.parametrize("example", ["digits", "svhn_1k"])
def test_a_plan_fits_a_terminal_of_80_columns(example: str) -> None:
    planned = planner.plan_memory(load(DIGITS.with_name(f"{example}.toml"), {}), ranks=8, memory=80 * 2**30, classes=10)
    assert max(map(len, planner.format_plan(planned))) <= 80
