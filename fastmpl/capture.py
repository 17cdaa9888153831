"""Whether the whole step of a configuration could be one CUDA graph: its capture lint, on a machine with no GPU."""

import torch

from fastmpl.assemble import assemble, network
from fastmpl.config import Config
from fastmpl.data.batch import Batch
from fastmpl.step.lint import lint
from fastmpl.step.trace import Fault


class FakeRun:
    """Networks, optimisers and a batch of the run's sizes, made under the fake tensors of the lint."""

    def __init__(self, config: Config, classes: int, image_shape: tuple[int, ...]) -> None:
        # none changes what a capture forbids; fake parameters cannot be converted to a memory format or sharded, and
        # torch's forward mode of a bf16 batch norm gives a float32 tangent that fake convolutions refuse (real ones do not)
        plain = {"channels_last": False, "precision": "float32", "engine": "plain"}
        config = config.model_copy(update={"system": config.system.model_copy(update=plain)})

        def stand_in() -> torch.nn.Module:
            return network(config.student, classes=classes, image_shape=image_shape, seed=0)

        self.trainee = assemble(
            config,
            classes=classes,
            image_shape=image_shape,
            device=torch.device("cpu"),
            fixed_teacher=stand_in,
        )
        self.batch = fake_batch(config, image_shape, classes)

    def step(self) -> None:
        self.trainee.step(self.batch)


def fake_batch(config: Config, image_shape: tuple[int, ...], classes: int) -> Batch:
    """A batch of the run's sizes."""
    data = config.data

    def pictures(n: int) -> torch.Tensor:
        return torch.empty(n, *image_shape)

    def numbers(n: int) -> torch.Tensor:
        return torch.zeros(n, dtype=torch.int64)

    trusted = (data.batch_trusted or data.batch_labelled) if data.trusted else 0
    return Batch(
        labelled=pictures(data.batch_labelled),
        targets=numbers(data.batch_labelled),
        labelled_index=numbers(data.batch_labelled),
        weak=pictures(data.batch_unlabelled),
        strong=pictures(data.batch_unlabelled),
        unlabelled_index=numbers(data.batch_unlabelled),
        trusted=pictures(trusted) if trusted else None,
        trusted_targets=numbers(trusted) if trusted else None,
        stored_labelled=torch.empty(data.batch_labelled, classes) if data.store else None,
        stored_unlabelled=torch.empty(data.batch_unlabelled, classes) if data.store else None,
    )


def capture_faults(config: Config, *, classes: int, image_shape: tuple[int, ...]) -> list[Fault]:
    """What keeps the step of `config` from being captured; nothing is computed. The step counts itself on."""
    return lint(lambda: FakeRun(config, classes, image_shape), FakeRun.step, lambda run: None)
