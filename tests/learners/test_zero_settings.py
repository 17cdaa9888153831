"""DeepSpeed's configuration follows from ours, key by key."""

from typing import Any

import pytest

from fastmpl.config import SystemConfig
from fastmpl.learners.zero.settings import BUCKET, settings


def derived(stage: int, *, on_gpu: bool = False, elements: int = 1001, ranks: int = 2, **system: Any) -> dict[str, Any]:
    return settings(
        SystemConfig(engine="zero", zero_stage=stage, **system), ranks=ranks, elements=elements, on_gpu=on_gpu
    )


def zero(stage: int, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = derived(stage, **options)["zero_optimization"]
    return found


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_stage_is_the_one_asked_for_and_linear_layers_keep_their_forward_mode(stage: int) -> None:
    assert zero(stage)["stage"] == stage
    assert zero(stage)["memory_efficient_linear"] is False


def test_clipping_rates_and_skips_are_the_learners() -> None:
    found = derived(1)
    assert found["gradient_clipping"] == 0.0
    assert found["zero_allow_untested_optimizer"] is True
    assert found["zero_force_ds_cpu_optimizer"] is False


def test_weights_are_float32_whatever_the_precision_of_the_arithmetic() -> None:
    for precision in ("float32", "bf16"):
        found = derived(2, precision=precision)
        assert (found["bf16"], found["fp16"]) == ({"enabled": False}, {"enabled": False})


def test_any_number_of_micro_batches_makes_a_step() -> None:
    for accumulate in (1, 4):
        found = derived(1, accumulate=accumulate)
        assert found["managed_gradient_accumulation"] is False
        assert found["gradient_accumulation_steps"] == 1


def test_what_deepspeed_counts_agrees_with_itself() -> None:
    found = derived(1, ranks=8)
    assert found["train_batch_size"] == 8 * found["train_micro_batch_size_per_gpu"]


def test_no_norm_is_read_on_the_host_where_deepspeed_lets_us_say_so() -> None:
    assert zero(1)["compute_grad_norm"] is False
    assert zero(2)["compute_grad_norm"] is False
    assert "compute_grad_norm" not in zero(0) | zero(3)
    assert "compute_grad_norm" not in zero(2, offload=True)


@pytest.mark.parametrize(
    ("stage", "on_gpu", "overlaps"), [(1, True, False), (2, True, True), (3, True, True), (3, False, False)]
)
def test_reductions_overlap_the_backward_pass_on_a_gpu(stage: int, on_gpu: bool, overlaps: bool) -> None:
    assert zero(stage, on_gpu=on_gpu)["overlap_comm"] is overlaps


def test_offload_puts_the_optimisers_shards_in_the_hosts_memory() -> None:
    assert zero(1, offload=True)["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert zero(3, offload=True, on_gpu=True)["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert "offload_optimizer" not in zero(1)


def test_stage_3_shards_small_parameters_too_and_takes_one_optimiser_step() -> None:
    found = zero(3)
    assert found["stage3_param_persistence_threshold"] == 0
    assert found["sub_group_size"] > 1001
    assert not any(key.startswith("stage3") for key in zero(2))


def test_buckets_are_no_larger_than_the_network() -> None:
    for elements, size in ((1001, 1002), (10 * BUCKET, BUCKET)):
        found = zero(3, elements=elements)
        assert found["reduce_bucket_size"] == found["allgather_bucket_size"] == size
        assert found["stage3_prefetch_bucket_size"] == size


def test_nothing_waits_for_the_device_to_time_or_print() -> None:
    found = derived(1)
    assert found["wall_clock_breakdown"] is False
    assert found["timers"] == {"throughput": {"enabled": False}}
    assert found["steps_per_print"] is None
