"""The memory that Meta Pseudo Labels takes of transformers, counted on fake tensors."""

import pytest

from benchmarks.bench_transformers import peak_bytes
from benchmarks.steps import VIT_B, VIT_S


@pytest.mark.slow
def test_a_step_of_two_vit_s_takes_the_memory_of_training_one() -> None:
    exact = peak_bytes(VIT_S, deferred=True, kind="exact")
    assert exact <= 1.15 * peak_bytes(VIT_S, schedule="supervised")
    assert exact <= 0.90 * peak_bytes(VIT_S, deferred=True, kind="exact", attention="math")


@pytest.mark.slow
def test_exact_feedback_on_a_vit_b_takes_the_memory_of_the_scalar() -> None:
    assert peak_bytes(VIT_B, deferred=True, kind="exact") <= 1.10 * peak_bytes(VIT_B, deferred=True)
