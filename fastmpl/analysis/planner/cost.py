"""What a step costs beside its state, found by running it on fake tensors: activations, and arithmetic.

The bytes of a step are those of its activations, which grow with the images, and of temporaries of the parameters' size,
which do not. Two sizes of the batch tell them apart. The counts are those of `fastmpl.analysis.accounting`.
"""

from typing import NamedTuple

from torch._subclasses.fake_tensor import FakeTensorMode

from fastmpl.analysis.accounting import arithmetic, measure
from fastmpl.analysis.fake_run import FakeRun, fake_batch
from fastmpl.config import Config, feeds_back

BATCHES = ("batch_labelled", "batch_unlabelled", "batch_trusted")


class Cost(NamedTuple):
    """Of one rank and step."""

    activations: int  # bytes at the peak that grow with the batch: what the graphs keep, and the batch itself
    overlap: int  # bytes of the parameters' size beside them at that moment: gradients that exist already, and copies
    flops: int  # of convolutions, matrix products and attention, 2 a multiply-add


class Shape(NamedTuple):
    """What is classified, as `FakeRun` takes it."""

    classes: int
    image: tuple[int, ...]


def share(config: Config, ranks: int, times: int = 1) -> Config:
    """The configuration of one rank's part of the batch, `times` as large."""
    step = config.system.accumulate
    parts = {name: -(-getattr(config.data, name) // (ranks * step)) * step * times for name in BATCHES}
    return config.model_copy(update={"data": config.data.model_copy(update=parts)})


def cost(config: Config, shape: Shape, ranks: int, kept: int = 0) -> Cost:
    """Of the step of `config` with copies of the networks on each rank; shards change the state, and are not asked for.

    kept: bytes that its credit keeps of the student (`gathered_bytes` at stage 0): counted there, they are left out here.
    """
    one, two = share(config, ranks), share(config, ranks, 2)
    with FakeTensorMode():
        if _runs_on_real_tensors_alone(config):
            flops = arithmetic(FakeRun(_changed(one, "system", precision="float32"), *shape).step)
            run, kept = FakeRun(_changed(one, "feedback", kind="off"), *shape), 0
            run.step()  # creates what later steps find
        else:
            run = FakeRun(one, *shape)
            flops = arithmetic(run.step)
        first = _beyond_state(run)
        run.batch = fake_batch(two, shape.image, shape.classes)
        second = _beyond_state(run)
    return Cost(second - first, max(0, 2 * first - second - kept), flops)


def _runs_on_real_tensors_alone(config: Config) -> bool:
    """torch's forward-mode rule of a bf16 batch norm gives a float32 tangent, which fake convolutions refuse. The step is
    counted without feedback then: its passes keep no activations, and the peak, in a backward pass, is the same.
    """
    forward = feeds_back(config) and config.feedback.kind != "scalar" and config.feedback.tangent == "jvp"
    return forward and config.system.precision == "bf16"


def _changed(config: Config, section: str, **values: object) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def _beyond_state(run: FakeRun) -> int:
    """Bytes at the peak of a step beside the networks' lasting state."""
    lasting = measure(lambda: None, run.trainee.state()).base_bytes
    return measure(run.step, *run.held()).peak_bytes - lasting
