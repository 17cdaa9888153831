"""Whether the whole step of a configuration could be one CUDA graph: its capture lint, on a machine with no GPU."""

import torch
from torch import Tensor

from fastmpl.analysis.capture_lint import lint
from fastmpl.analysis.capture_trace import Fault
from fastmpl.config import Config
from fastmpl.data.batch import Batch
from fastmpl.models import build_network
from fastmpl.run.build import assemble


class FakeRun:
    """Networks, optimisers and a batch of the run's sizes, made under the fake tensors of the lint."""

    def __init__(self, config: Config, classes: int, image_shape: tuple[int, ...]) -> None:
        # neither changes what a capture forbids: a compiler would trace the fake tensors' own code, and shards have ranks
        simple = {"compile": False, "engine": "plain"}
        config = config.model_copy(update={"system": config.system.model_copy(update=simple)})

        def stand_in() -> torch.nn.Module:
            return build_network(config.student, classes=classes, image_shape=image_shape, seed=0)

        self.trainee = assemble(
            config,
            classes=classes,
            image_shape=image_shape,
            device=torch.device("cpu"),
            fixed_teacher=stand_in,
        )
        self.batch = fake_batch(config, image_shape, classes)

    def held(self) -> list[Tensor]:
        """What exists before a step: state of the networks and the step, and the batch."""
        return [*self.trainee.state().values(), *(part for part in self.batch if part is not None)]

    def step(self) -> None:
        self.trainee.step(self.batch)


def fake_batch(config: Config, image_shape: tuple[int, ...], classes: int) -> Batch:
    """A batch of the run's sizes."""
    data = config.data

    def pictures(n: int) -> torch.Tensor:
        images = torch.empty(n, *image_shape)
        last = config.system.channels_last and images.dim() == 4
        return images.contiguous(memory_format=torch.channels_last) if last else images

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
