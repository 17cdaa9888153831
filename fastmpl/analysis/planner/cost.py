"""Counts what a step needs beside its state, on fake tensors: activations and arithmetic.

The bytes of a step are of two kinds: activations, which grow with the batch, and temporaries of the size of the
parameters, which do not. Counting at two batch sizes separates them (`fastmpl.analysis.accounting` counts).
"""

from typing import NamedTuple

from torch._subclasses.fake_tensor import FakeTensorMode

from fastmpl.analysis.accounting import count_arithmetic, measure
from fastmpl.analysis.fake_run import FakeRun, make_fake_batch
from fastmpl.config import Config, uses_forward_mode

BATCHES = ("batch_labelled", "batch_unlabelled", "batch_trusted")


class Cost(NamedTuple):
    """What one step costs one rank."""

    activations: int  # bytes at the peak that grow with the batch: saved tensors, and the batch itself
    overlap: int  # bytes beside them at the peak that do not grow: gradients that exist by then, and copies
    flops: int  # of convolutions, matrix products and attention, 2 a multiply-add


class Shape(NamedTuple):
    """Number of classes and shape of an image, as `FakeRun` takes them."""

    classes: int
    image: tuple[int, ...]


def divide_batches(config: Config, ranks: int, times: int = 1) -> Config:
    """The configuration with the batch sizes of one rank, multiplied by `times`."""
    step = config.system.accumulate
    parts = {name: -(-getattr(config.data, name) // (ranks * step)) * step * times for name in BATCHES}
    return config.model_copy(update={"data": config.data.model_copy(update=parts)})


def count_cost(config: Config, shape: Shape, ranks: int, kept: int = 0) -> Cost:
    """Counts the step of `config` with whole networks on each rank (sharding changes the state alone).

    kept: bytes of the student that the credit keeps (`gathered_bytes` at stage 0). The plan counts them there, so they
        are subtracted here.
    """
    one, two = divide_batches(config, ranks), divide_batches(config, ranks, 2)
    with FakeTensorMode():
        if _runs_on_real_tensors_alone(config):
            flops = count_arithmetic(FakeRun(_change(one, "system", precision="float32"), *shape).step)
            run, kept = FakeRun(_change(one, "feedback", kind="off"), *shape), 0
            run.step()  # creates optimiser state and gradients, which later steps find
        else:
            run = FakeRun(one, *shape)
            flops = count_arithmetic(run.step)
        first = _beyond_state(run)
        run.batch = make_fake_batch(two, shape.image, shape.classes)
        second = _beyond_state(run)
    return Cost(second - first, max(0, 2 * first - second - kept), flops)


def _runs_on_real_tensors_alone(config: Config) -> bool:
    """The forward-mode rule of torch for a bf16 batch norm gives a float32 tangent, which fake convolutions refuse.

    Such a step is counted without feedback. The passes of feedback keep no activations, so the peak, which lies in a
    backward pass, is the same.
    """
    return uses_forward_mode(config) and config.system.precision == "bf16"


def _change(config: Config, section: str, **values: object) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def _beyond_state(run: FakeRun) -> int:
    """Bytes at the peak of a step, without the lasting state of the networks."""
    lasting = measure(lambda: None, run.trainee.parts().state()).base_bytes
    return measure(run.step, *run.list_held()).peak_bytes - lasting
