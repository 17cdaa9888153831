"""Counts what a step needs beside its state, on fake tensors: activations and arithmetic.

The bytes of a step are of two kinds: activations, which grow with the batch, and temporaries of the size of the
parameters, which do not. Both are known from the peaks at two sizes of the batch. A fake step of a deep network takes
seconds, so all schedules share their networks, and where a step has no forward-mode pass one step counts both sizes
(`fastmpl.analysis.accounting.GrowingBytes`). A forward-mode pass may be cut into chunks by its bytes; such a step is
counted at each size by itself.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from torch._subclasses.fake_tensor import FakeTensorMode

from fastmpl.analysis.accounting import GrowingBytes, LiveBytes, count_arithmetic, measure
from fastmpl.analysis.fake_run import FakeRun, make_fake_batch
from fastmpl.config import Config, uses_forward_mode
from fastmpl.learners.plain import PlainLearner
from fastmpl.run.build import sees_images_again

BATCHES = ("batch_labelled", "batch_unlabelled", "batch_trusted")
MARK: Final = 10_007  # a prime above every number of channels, pixels and classes


class Cost(NamedTuple):
    """What one step costs one rank."""

    activations: int  # bytes at the peak that grow with the batch: saved tensors, and the batch itself
    overlap: int  # bytes beside them at the peak that do not grow: gradients that exist by then, and copies
    flops: int  # of convolutions, matrix products and attention, 2 a multiply-add


class Shape(NamedTuple):
    """Number of classes and shape of an image, as `FakeRun` takes them."""

    classes: int
    image: tuple[int, ...]


class _Peaks(NamedTuple):
    """Bytes at the peak of a step, with the configured batch and with twice as many images; and its arithmetic."""

    one: int
    two: int
    flops: int


def divide_batches(config: Config, ranks: int, times: int = 1) -> Config:
    """The configuration with the batch sizes of one rank, multiplied by `times`."""
    step = config.system.accumulate
    parts = {name: -(-getattr(config.data, name) // (ranks * step)) * step * times for name in BATCHES}
    return config.model_copy(update={"data": config.data.model_copy(update=parts)})


def count_costs(configs: Mapping[str, Config], shape: Shape, ranks: int) -> dict[str, Cost]:
    """Counts the step of each of `configs`, which differ in their schedule alone, with whole networks on each rank.

    Sharding changes the state alone.
    """
    first = next(iter(configs.values()))
    replaced = _runs_on_real_tensors_alone(first)
    counted = _change(first, "feedback", kind="off") if replaced else first
    marked = not _has_tangent(counted)
    with FakeTensorMode():
        run = FakeRun(divide_batches(counted, ranks, MARK if marked else 1), *shape)
        for learner in run.trainee.learners().values():  # creates the optimiser's state, which later steps find
            learner.apply(run.trainee.step.step)
        lasting = measure(lambda: None, run.trainee.parts().state()).base_bytes
        forward = _count_forward(run) if replaced else 0
        costs = {}
        for name, config in configs.items():
            if len(configs) > 1:
                run.follow(config)
            one, two, flops = _count_marked(run) if marked else _count_twice(run, counted, shape, ranks)
            feedback = _estimate_feedback(config, run, ranks) * forward if replaced else 0
            costs[name] = Cost(two - one, max(0, 2 * one - two - lasting), flops + round(feedback))
    return costs


def _count_marked(run: FakeRun) -> _Peaks:
    """The step of `run`, whose batch is marked, at both sizes."""
    mode = GrowingBytes(MARK)
    mode.watch(*run.list_held())
    with mode:
        run.step()
    return _Peaks(*mode.peaks, mode.flops // MARK)


def _count_twice(run: FakeRun, config: Config, shape: Shape, ranks: int) -> _Peaks:
    """The step of `run` with the batch of `config` on a rank, and with twice as many images."""
    counted = []
    for times in (1, 2):
        run.batch = make_fake_batch(divide_batches(config, ranks, times), shape.image, shape.classes)
        mode = LiveBytes()
        mode.watch(*run.list_held())
        with mode:
            run.step()
        counted.append(mode)
    one, two = counted
    return _Peaks(one.peak, two.peak, one.flops)


def _has_tangent(config: Config) -> bool:
    return uses_forward_mode(config)


def _runs_on_real_tensors_alone(config: Config) -> bool:
    """The forward-mode rule of torch for a bf16 batch norm gives a float32 tangent, which fake convolutions refuse.

    Such a step is counted without feedback. The passes of feedback keep no activations, so the peak, which lies in a
    backward pass, is the same.
    """
    return _has_tangent(config) and config.system.precision == "bf16"


def _count_forward(run: FakeRun) -> float:
    """The arithmetic of one forward pass of the student, an image."""
    return count_arithmetic(lambda: run.trainee.student.observe(run.batch.strong, run.trainee.step.step)) / len(
        run.batch.strong
    )


def _estimate_feedback(config: Config, run: FakeRun, ranks: int) -> int:
    """The arithmetic of exact feedback, in forward passes of one image.

    A backward pass costs two forward ones, and so does the tangent of a product, of which both factors have one; the
    forward pass beside a tangent is left out where its inputs are kept. The images are those that give the feedback, and
    those of the student's step.
    """
    student, data = run.trainee.student, divide_batches(config, ranks).data
    assert isinstance(student, PlainLearner)
    keeps = sees_images_again(config) and student.can_keep_inputs(config.system.recompute)
    given = (data.batch_trusted or data.batch_labelled) if config.feedback.images == "trusted" else data.batch_labelled
    learnt = data.batch_unlabelled + (data.batch_labelled if config.system.schedule == "joint" else 0)
    return 3 * given + (2 if keeps else 3) * learnt


def _change(config: Config, section: str, **values: object) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
