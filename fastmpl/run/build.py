"""From a configuration and its data to the networks, the method and the step that trains them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fastmpl.config import Config, NetworkConfig, feeds_back, names_own_model, uses_forward_mode
from fastmpl.data.normalise import Normalisation
from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.protocol import RunLearner
from fastmpl.learners.state import Parts, Stateful
from fastmpl.learners.tangent_parts import images_at_once
from fastmpl.learners.zero.learner import ZeroLearner
from fastmpl.methods.distillation import distillation
from fastmpl.methods.gold_correction import GoldCorrection
from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.methods.pseudo_label import PseudoLabel
from fastmpl.methods.single_network import SingleNetworkMethod
from fastmpl.methods.supervised import Supervised
from fastmpl.methods.uda import Consistency, Uda
from fastmpl.models import build_network
from fastmpl.models.attention import set_attention
from fastmpl.models.errors import name_role
from fastmpl.models.input_map import differ, map_inputs
from fastmpl.models.layout import channels_last
from fastmpl.models.pretrained import Weights
from fastmpl.models.reduced_teacher import ReducedTeacher, StoredTeacher
from fastmpl.run.corruption import KeptCorruption
from fastmpl.run.input_constants import normalisation_of
from fastmpl.step.eager import EagerStep, Ramp, Step
from fastmpl.step.mpl_step import MplStep
from fastmpl.step.order import Order, joint, split
from fastmpl.step.single_network_step import SingleNetworkStep
from fastmpl.step.uncredited_step import leave_out_credit

STUDENT_SEED, TEACHER_SEED = 1, 2  # the two networks start apart, and as in every run of this seed


class Trainee(NamedTuple):
    """What trains: one or two networks, and the step that moves them."""

    student: RunLearner
    teacher: RunLearner | None
    step: EagerStep
    kept: Mapping[str, Stateful] = MappingProxyType({})  # what else a step reads that was made when the run began

    def learners(self) -> dict[str, RunLearner]:
        """The networks that learn, by their role."""
        return {"student": self.student} | ({} if self.teacher is None else {"teacher": self.teacher})

    def parts(self) -> Parts:
        """What training continues from."""
        return Parts({**self.learners(), "step": self.step, **self.kept})


def sees_images_again(config: Config) -> bool:
    """Whether the tangent goes through the very images of one pass that learned."""
    system = config.system
    return uses_forward_mode(config) and system.schedule == "split" and system.accumulate == 1


@dataclass(frozen=True)
class _Networks:
    """Builds the networks of a run on its device, and the learners that train them."""

    config: Config
    classes: int
    image_shape: tuple[int, ...]
    device: torch.device
    ranks: Ranks
    weights: Mapping[str, Weights]
    normalisation: Normalisation | None
    note: Callable[[str], None]

    def make_learner(self, section: NetworkConfig, seed: int, average: float) -> RunLearner:
        """The learner of `section`, which is the configuration's student or teacher."""
        config, system, feedback = self.config, self.config.system, self.config.feedback
        module = self.place(self._make_network(section, config.run.seed * 1009 + seed))
        common: dict[str, Any] = {"steps": config.run.steps, "average": average, "ranks": self.ranks}
        common |= {"tangent": feedback.tangent, "depth": feedback.depth}
        if section is config.student and uses_forward_mode(config):
            common["tangent_images"] = images_at_once(module, self.image_shape)
        if system.engine == "zero":
            return ZeroLearner(module, section, system, **common)
        # only a student's passes see the same memory twice, and only where each view has a pass of its own
        common["shares_prefix"] = section is config.student and feeds_back(config) and system.schedule == "split"
        common["keeps_inputs"] = section is config.student and sees_images_again(config)
        common |= {"recompute": system.recompute, "compiler": "inductor" if system.compile else ""}
        return PlainLearner(module, section, precision=system.precision, **common)

    def _make_network(self, section: NetworkConfig, seed: int) -> nn.Module:
        if section is self.config.teacher and self.config.method.name == "reduced_mpl":
            return ReducedTeacher(self.classes, section.width, section.depth, seed)
        role = "teacher" if section is self.config.teacher else "student"
        with name_role(role):
            network = build_network(
                section,
                classes=self.classes,
                image_shape=self.image_shape,
                seed=seed,
                weights=self.weights.get(role),
                note=lambda sentence: self.note(f"{role}: {sentence}."),
            )
        own, shown = normalisation_of(section, self.image_shape[0]), self.normalisation
        if role == "student" or own is None or shown is None or not differ(shown, own):
            return network
        self.note("teacher: its images are brought from the student's normalisation to its own by an affine map.")
        return map_inputs(network, shown, own)

    def place(self, module: nn.Module) -> nn.Module:
        """`module` on the device, in its memory format, with its form of attention.

        Skips moves that change nothing, which FakeTensorMode rejects.
        """
        system = self.config.system
        set_attention(module, system.attention)
        if self.device.type != "cpu":
            module = module.to(self.device)
        return channels_last(module) if system.channels_last else module


def assemble(
    config: Config,
    *,
    classes: int,
    image_shape: tuple[int, ...],
    device: torch.device,
    fixed_teacher: Callable[[], nn.Module],
    corruption: Callable[[], Float[Tensor, "K K"]] | None = None,
    ranks: Ranks = ALONE,
    weights: Mapping[str, Weights] = MappingProxyType({}),
    normalisation: Normalisation | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> Trainee:
    """Networks on `device`, and the step of `config`'s method; `fixed_teacher` gives the one that does not learn.

    corruption: gives that of the labels, for gold loss correction; None: the identity, until a state is loaded.
    weights: what the networks that learn start from, by role; random weights for a role that is missing. normalisation:
    that of the batches, which are the student's inputs; a teacher with another has a map in front of it. note: called with
    a sentence on the tensors that were loaded.
    """
    networks = _Networks(config, classes, image_shape, device, ranks, weights, normalisation, note)
    student = networks.make_learner(config.student, STUDENT_SEED, config.student.average)
    take: Step
    between: Step | None = None
    teacher = None
    kept: dict[str, Stateful] = {}
    if config.method.name in ("mpl", "reduced_mpl"):
        method = mpl_of(config)
        teacher = networks.make_learner(config.teacher, TEACHER_SEED, 0.0)
        take = MplStep(method, choose_order(config, method), teacher, student)
        between = leave_out_credit(take, device) if config.feedback.every > 1 else None
    else:
        matrix = None
        if config.method.name == "gold_correction":
            matrix = torch.eye(classes, device=device) if corruption is None else corruption().to(device)
            kept["corruption"] = KeptCorruption(matrix)
        single = single_network_method(config, matrix)
        labels = None
        if single.labeller == "fixed":
            labels = networks.place(StoredTeacher() if config.data.store else fixed_teacher()).eval()
        take = SingleNetworkStep(single, student, labels)
    step = EagerStep(
        take,
        seed=config.run.seed,
        ramp=Ramp(config.uda.weight, config.uda.ramp),
        device=device,
        rank=ranks.rank,
        accumulate=config.system.accumulate,
        between=between,
        every=config.feedback.every,
    )
    return Trainee(student, teacher, step, kept)


def choose_order(config: Config, method: MetaPseudoLabels) -> Order:
    """The order of the passes. The graphs of all micro-batches at once would be the memory that micro-batches save."""
    deferred = config.system.deferred or config.system.accumulate > 1
    return (joint if config.system.schedule == "joint" else split)(method, deferred=deferred)


def mpl_of(config: Config) -> MetaPseudoLabels:
    """The settings of Meta Pseudo Labels. A reduced teacher has one stored row of an image, not two views to agree on."""
    method, feedback = config.method, config.feedback
    return MetaPseudoLabels(
        unlabelled=config.data.batch_unlabelled,
        targets=method.targets,
        label_view=method.label_view,
        temperature=method.temperature,
        label_smoothing=method.label_smoothing,
        supervised_weight=method.supervised_weight,
        student_label_smoothing=config.student.label_smoothing,
        feedback=Feedback(
            kind=feedback.kind,
            images=feedback.images,
            weight=feedback.weight,
            every=feedback.every,
            control=feedback.control,
            baseline=feedback.baseline,
        ),
        consistency=consistency_of(config) if config.uda.weight > 0 and method.name == "mpl" else None,
    )


def consistency_of(config: Config) -> Consistency:
    return Consistency(config.uda.temperature, config.uda.threshold)


def single_network_method(config: Config, corruption: Float[Tensor, "K K"] | None = None) -> SingleNetworkMethod:
    """The method of a run that trains one network. corruption: that of the labels, which gold loss correction needs."""
    method = config.method
    if method.name == "gold_correction":
        assert corruption is not None, "the corruption of the labels was not given"
        return GoldCorrection(corruption, method.trusted_weight, method.label_smoothing)
    if method.name == "supervised":
        return Supervised(method.label_smoothing)
    if method.name == "uda":
        return Uda(consistency_of(config), method.label_smoothing, method.supervised_weight)
    if method.name == "distillation":
        return distillation(
            label_view=method.label_view,
            temperature=method.temperature,
            student_label_smoothing=config.student.label_smoothing,
        )
    return PseudoLabel(
        targets=method.targets,
        labeller="self" if names_own_model(config.teacher.model) else "fixed",
        label_view=method.label_view,
        temperature=method.temperature,
        threshold=method.threshold,
        label_smoothing=method.label_smoothing,
        supervised_weight=method.supervised_weight,
        student_label_smoothing=config.student.label_smoothing,
    )
