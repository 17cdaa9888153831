"""ReducedMPL trains a ResNet-50 in the memory of supervised training, by less than twice its arithmetic."""

from benchmarks.bench_reduced import account
from benchmarks.steps import RESNET50


def test_a_reduced_mpl_step_fits_into_the_memory_of_supervised_training() -> None:
    supervised, work = account(RESNET50, schedule="supervised")
    reduced, more_work = account(RESNET50, kind="exact")
    assert reduced.peak_bytes <= 1.05 * supervised.peak_bytes
    assert 1.67 <= more_work / work < 1.89
