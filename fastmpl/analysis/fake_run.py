"""Runs the capture lint over the whole step of a configuration. No GPU is needed, and nothing is computed."""

from dataclasses import replace

import torch
from torch import Tensor

from fastmpl.analysis.capture_lint import STEPS, lint
from fastmpl.analysis.capture_trace import Fault
from fastmpl.config import Config, learns_unlabelled, takes_trusted, without_feedback
from fastmpl.data.batch import Batch
from fastmpl.data.normalise import IMAGENET
from fastmpl.learners.plain import PlainLearner
from fastmpl.models import build_network
from fastmpl.run.build import assemble, choose_order, sees_images_again
from fastmpl.run.input_constants import normalisation_of
from fastmpl.step.mpl_step import MplStep

# torch has no form of its fused SGD for tensors without data, and runs it on real zeros: gigabytes of a large network
_WITHOUT_DATA = torch.library.Library("aten", "IMPL", "Meta")  # type: ignore[no-untyped-call]
for _overload in ("", ".tensor_lr"):
    _WITHOUT_DATA.impl(f"_fused_sgd_{_overload}", lambda *tensors, **options: None)  # type: ignore[no-untyped-call]


class FakeRun:
    """Networks, optimisers and a batch of the sizes of a run. Made under a FakeTensorMode, it holds no data.

    Each of its steps credits the labels, if any does: the steps between them are those of `without_feedback(config)`.
    """

    def __init__(self, config: Config, classes: int, image_shape: tuple[int, ...]) -> None:
        # a compiler would trace the code of the fake tensors, and shards need ranks; neither changes what can be captured
        simple = {"compile": False, "engine": "plain"}
        system, feedback = config.system.model_copy(update=simple), config.feedback.model_copy(update={"every": 1})
        config = config.model_copy(update={"system": system, "feedback": feedback})

        def build_stand_in() -> torch.nn.Module:
            return build_network(config.student, classes=classes, image_shape=image_shape, seed=0)

        self.trainee = assemble(
            config,
            classes=classes,
            image_shape=image_shape,
            device=torch.get_default_device(),
            fixed_teacher=build_stand_in,
            normalisation=normalisation_of(config.student, image_shape[0])
            or (IMAGENET if len(image_shape) == 3 else None),
        )
        self.batch = make_fake_batch(config, image_shape, classes)

    def follow(self, config: Config) -> None:
        """Takes the further steps of two networks by the schedule of `config`, which differs in the schedule alone."""
        step = self.trainee.step
        assert isinstance(step.take, MplStep)
        step.take = replace(step.take, order=choose_order(config, step.take.method))
        for learner in self.trainee.learners().values():
            assert isinstance(learner, PlainLearner)
            learner.recompute = config.system.recompute
            learner.keep_inputs(learner is self.trainee.student and sees_images_again(config))

    def list_held(self) -> list[Tensor]:
        """The tensors that exist before a step: the state of networks and step, and the batch."""
        return [*self.trainee.parts().state().values(), *(part for part in self.batch if part is not None)]

    def step(self) -> None:
        self.trainee.step(self.batch)


def make_fake_batch(config: Config, image_shape: tuple[int, ...], classes: int) -> Batch:
    """Makes a batch of the sizes of the run: empty images, targets and indices of 0."""
    data = config.data

    def make_pictures(n: int) -> torch.Tensor:
        images = torch.empty(n, *image_shape)
        last = config.system.channels_last and images.dim() == 4
        return images.contiguous(memory_format=torch.channels_last) if last else images

    def make_numbers(n: int) -> torch.Tensor:
        return torch.zeros(n, dtype=torch.int64)

    unlabelled = data.batch_unlabelled if learns_unlabelled(config) else 0
    trusted = (data.batch_trusted or data.batch_labelled) if takes_trusted(config) else 0
    return Batch(
        labelled=make_pictures(data.batch_labelled),
        targets=make_numbers(data.batch_labelled),
        labelled_index=make_numbers(data.batch_labelled),
        weak=make_pictures(unlabelled),
        strong=make_pictures(unlabelled),
        unlabelled_index=make_numbers(unlabelled),
        trusted=make_pictures(trusted) if trusted else None,
        trusted_targets=make_numbers(trusted) if trusted else None,
        stored_labelled=torch.empty(data.batch_labelled, classes) if data.store else None,
        stored_unlabelled=torch.empty(unlabelled, classes) if data.store else None,
    )


def find_capture_faults(config: Config, *, classes: int, image_shape: tuple[int, ...]) -> list[Fault]:
    """Lists what keeps the step of `config` from being captured. The step advances its own schedules.

    Two successive steps are compared with the networks of `config`. Many are compared with small networks in their
    place: what a step does every n-th time is the code around the networks, and a fake step of a deep one takes seconds.
    """

    def find(config: Config, steps: int) -> list[Fault]:
        return lint(lambda: FakeRun(config, classes, image_shape), FakeRun.step, lambda run: None, steps=steps)

    kinds = [config] if config.feedback.every == 1 else [config, without_feedback(config)]
    found = [fault for kind in kinds for fault in (*find(kind, 2), *find(_replace_networks(kind), STEPS))]
    firsts = {(fault.kind, fault.where): fault for fault in reversed(found)}  # the words hold sizes, which differ
    return [fault for fault in found if firsts[fault.kind, fault.where] is fault]


def _replace_networks(config: Config) -> Config:
    """`config` with a perceptron for each network that learns. What labels for a student is as small as the student."""
    roles = ("student", "teacher") if config.method.name in ("mpl", "reduced_mpl") else ("student",)
    small = {role: getattr(config, role).model_copy(update={"model": "perceptron"}) for role in roles}
    return config.model_copy(update=small)
