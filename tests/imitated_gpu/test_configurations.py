"""Under the imitated GPU every shipped configuration's step captures, and its replays are the eager steps bit for bit."""

from collections.abc import Mapping

import pytest

from tests.examples import EXAMPLES
from tests.imitated_gpu.device import ImitatedGpu
from tests.imitated_gpu.steps import (
    LARGEST,
    SMALLEST,
    STEPS,
    assert_replays_equal_eager_steps,
    load_small,
    make_batches,
)

NAMES = [path.stem for path in EXAMPLES]
DEEP = [name for name in NAMES if load_small(name)[0].student.model.startswith(("timm:", "wrn"))]


def assert_captures(name: str, gpu: ImitatedGpu, steps: int = STEPS, smaller: Mapping[str, str] = SMALLEST) -> None:
    config, shape = load_small(name, smaller)
    assert_replays_equal_eager_steps(config, shape, steps, make_batches(config, shape, steps + 2))
    (graph,) = gpu.graphs
    assert graph.replays == steps


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DEEP])
def test_twenty_replays_with_changing_rates_equal_eager_steps(name: str, gpu: ImitatedGpu) -> None:
    assert_captures(name, gpu)


@pytest.mark.parametrize("name", DEEP)
def test_replays_of_a_deep_network_equal_eager_steps(name: str, gpu: ImitatedGpu) -> None:
    assert_captures(name, gpu, 2)


def test_the_steps_that_credit_and_those_between_are_graphs_that_share_their_memory(gpu: ImitatedGpu) -> None:
    config, shape = load_small("digits", SMALLEST, feedback__every=2)
    assert_replays_equal_eager_steps(config, shape, 10, make_batches(config, shape, 12))
    between, credited = gpu.graphs
    assert (between.replays, credited.replays) == (4, 4)
    assert between.pool() is credited.pool()


LAYERS: dict[str, dict[str, object]] = {
    "frozen": {"student__freeze": 2, "teacher__freeze": 1},
    "frozen at first": {"student__freeze": 2, "student__freeze_steps": 4},
}


@pytest.mark.parametrize("layers", LAYERS)
def test_replays_with_rates_by_layer_and_frozen_layers_equal_eager_steps(layers: str, gpu: ImitatedGpu) -> None:
    """The frozen time ends within the replays of one graph."""
    changes = {"student__optimiser": "adamw", "student__layer_decay": 0.7, "student__head_lr": 2.0}
    config, shape = load_small("digits", SMALLEST, **(changes | LAYERS[layers]))
    assert_replays_equal_eager_steps(config, shape, 6, make_batches(config, shape, 8))


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_twenty_replays_of_a_deep_network_equal_eager_steps(name: str, gpu: ImitatedGpu) -> None:
    assert_captures(name, gpu)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", DEEP)
def test_replays_of_a_network_of_full_depth_equal_eager_steps(name: str, gpu: ImitatedGpu) -> None:
    assert_captures(name, gpu, 2, smaller=LARGEST)
