"""Where TF32 may be used: in no pass whose losses or logits are compared, and nowhere where it is switched off."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastmpl.config import Config, load, uses_tf32
from fastmpl.learners import arithmetic
from fastmpl.learners.arithmetic import allow_tf32, describe_precision, search_convolutions
from fastmpl.learners.plain import PlainLearner
from fastmpl.run.trainer import train
from tests.step.worlds import FEATURES, network, optimiser

KEY = torch.zeros((), dtype=torch.int64)
IMAGES = torch.zeros(4, FEATURES, dtype=torch.float64)
CONFIGS = Path(__file__).parents[2] / "launch" / "configs"


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def watch(module: nn.Module, seen: list[tuple[bool, bool]]) -> None:
    module.register_forward_pre_hook(lambda *_: seen.append(switches()))


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda one: one.observe(IMAGES, KEY, precise=True), (False, False)),
        (lambda one: one.observe(IMAGES, KEY), (True, True)),
        (lambda one: one.forward(IMAGES, KEY), (True, True)),
    ],
    ids=["compared", "labels", "training"],
)
def test_a_pass_that_is_compared_runs_without_tf32(
    call: Callable[[PlainLearner], Tensor], found: tuple[bool, bool]
) -> None:
    one, seen = PlainLearner(network(1), optimiser(), steps=1), []  # type: ignore[var-annotated]
    watch(one.module, seen)
    with allow_tf32(True):
        call(one)
        assert switches() == (True, True)
    assert seen == [found]


def test_the_switches_are_restored_whatever_happens() -> None:
    before, benchmark = switches(), torch.backends.cudnn.benchmark
    found = []

    def fail() -> None:
        with allow_tf32(not before[0]), search_convolutions(not benchmark):
            found.append((*switches(), torch.backends.cudnn.benchmark))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert found == [(not before[0], not before[0], not benchmark)]
    assert switches() == before
    assert torch.backends.cudnn.benchmark is benchmark


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, True),
        ({"system.tf32": "off"}, False),
        ({"feedback.tangent": "difference"}, False),
        ({"method.name": "supervised", "feedback.kind": "off", "feedback.tangent": "difference"}, True),
    ],
    ids=str,
)
def test_the_difference_form_and_a_key_switch_tf32_off(changes: dict[str, object], allowed: bool) -> None:
    assert uses_tf32(load(CONFIGS / "digits.toml", changes)) is allowed


@pytest.mark.parametrize("tf32", ["training", "off"])
def test_a_run_trains_by_the_policy_of_its_configuration(
    tf32: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nvidia.dali", reason="a run reads its images by DALI: pip install nvidia-dali-cuda130")
    changes = {"run.output": str(tmp_path), "run.steps": 1, "run.evaluate_every": 1, "data.batch_unlabelled": 8}
    config: Config = load(CONFIGS / "digits.toml", changes | {"system.tf32": tf32, "system.benchmark": True})
    seen: list[tuple[bool, bool, bool]] = []
    honest = PlainLearner.forward

    def spy(self: PlainLearner, images: Tensor, draw: Tensor, **options: bool) -> Tensor:
        seen.append((*switches(), torch.backends.cudnn.benchmark))
        return honest(self, images, draw, **options)

    monkeypatch.setattr(PlainLearner, "forward", spy)
    before = switches()
    train(config, quiet=True, report=False)
    assert set(seen) == {(tf32 == "training", tf32 == "training", True)}
    assert switches() == before


def test_a_cpu_without_bf16_says_so_where_bf16_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(arithmetic.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    (sentence,) = describe_precision(cpu, "bf16")
    assert 'set system.precision = "float32"' in sentence
    assert describe_precision(cpu, "float32") == describe_precision(gpu, "bf16") == []
    monkeypatch.setattr(arithmetic.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert describe_precision(cpu, "bf16") == []
