"""The steps that are compared: one network pair, one batch, one schedule each; and the published order of the step."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from fastmpl.config import NetworkConfig
from fastmpl.data.batch import Batch
from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.tangent_parts import images_at_once
from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.methods.supervised import Supervised
from fastmpl.methods.uda import Consistency
from fastmpl.methods.views import by_view, images
from fastmpl.models import build
from fastmpl.models.attention import Attention, set_attention
from fastmpl.models.layout import channels_last
from fastmpl.step.context import LABEL, STUDENT, TEACHER, VALIDATION, make_context
from fastmpl.step.mpl_step import MplStep
from fastmpl.step.order import Order, joint, split
from fastmpl.step.single_network_step import SingleNetworkStep

CPU = torch.device("cpu")
STUDENT_SEED = 1
NESTEROV = NetworkConfig(optimiser="nesterov", lr=0.05, warmup=0, schedule="constant")


@dataclass(frozen=True)
class Size:
    """What is trained on."""

    model: str
    pixels: int
    labelled: int
    unlabelled: int
    classes: int = 10

    def network(self, seed: int) -> nn.Module:
        shape = (3, self.pixels, self.pixels)
        return build(
            self.model, classes=self.classes, image_shape=shape, dropout=0.0, norm="batch", width=64, depth=3, seed=seed
        )

    def batch(self) -> Batch:
        """Noise: a step's cost does not depend on what is in the pictures."""

        def pictures(n: int) -> torch.Tensor:
            return torch.randn(n, 3, self.pixels, self.pixels)

        return Batch(
            labelled=pictures(self.labelled),
            targets=torch.arange(self.labelled) % self.classes,
            labelled_index=torch.arange(self.labelled),
            weak=pictures(self.unlabelled),
            strong=pictures(self.unlabelled),
            unlabelled_index=torch.arange(self.unlabelled),
        )


WRN = Size("wrn_28_2", 32, 8, 56)
RESNET50 = Size("timm:resnet50", 224, 8, 56, classes=1000)
VIT_S = Size("timm:vit_small_patch16_224", 224, 8, 56, classes=1000)
VIT_B = Size("timm:vit_base_patch16_224", 224, 8, 56, classes=1000)
DINOV2_S = Size("timm:vit_small_patch14_dinov2", 518, 4, 28, classes=1000)
EFFICIENTNET_B7 = Size("timm:tf_efficientnet_b7", 224, 8, 56, classes=1000)


@dataclass
class Step:
    """A step that can be called again and again, and what it holds."""

    size: Size
    kind: Literal["exact", "scalar", "off"] = "scalar"
    schedule: Literal["split", "joint", "published", "supervised"] = "split"
    deferred: bool = False
    recompute: bool = False
    label_view: Literal["weak", "strong"] = "strong"
    tangent: Literal["jvp", "difference"] = "jvp"
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
    device: torch.device = CPU
    attention: Attention = "fused"
    compiler: str = ""  # torch.compile's backend for the networks; none where empty
    keeps_inputs: bool = True  # whether the tangent takes what it can from the pass that learned
    prepare: Any = None  # called with each network before it learns
    ranks: Ranks = ALONE  # each takes such a step on images of its own
    held: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        def learner(seed: int) -> PlainLearner:
            module = self.size.network(seed)
            if self.device != CPU:  # FakeTensorMode rejects a move that changes nothing
                module = module.to(self.device)
            if self.channels_last:
                module = channels_last(module)
            set_attention(module, self.attention)
            if self.prepare is not None:
                self.prepare(module)
            return PlainLearner(
                module,
                NESTEROV,
                steps=1000,
                recompute=self.recompute,
                tangent=self.tangent,
                tangent_images=images_at_once(module, self.batch.strong.shape[1:]) if self.kind == "exact" else 0,
                precision=self.precision,
                compiler=self.compiler,
                ranks=self.ranks,
                keeps_inputs=self.keeps_inputs
                and seed == STUDENT_SEED
                and self.kind == "exact"
                and self.tangent == "jvp",
            )

        self.take_batch(self.size.batch().to(self.device))
        self.student = learner(STUDENT_SEED)
        self.baseline = torch.zeros((), device=self.device)
        self.step = torch.zeros((), dtype=torch.int64, device=self.device)
        self.weight = torch.ones((), device=self.device)
        self.held = [self.student.state(), tuple(part for part in self.batch if part is not None)]
        if self.schedule == "supervised":
            return
        self.teacher = learner(2)
        self.held.append(self.teacher.state())
        self.method = MetaPseudoLabels(
            unlabelled=self.size.unlabelled,
            targets="soft" if self.kind == "exact" else "sampled",
            label_view=self.label_view,
            feedback=Feedback(self.kind),
            consistency=Consistency(),
        )

    def __call__(self) -> object:
        self.context = make_context(self.step, self.step, self.weight, rank=self.ranks.rank)
        if self.schedule == "supervised":
            return self._supervised()
        if self.schedule == "published":
            return take_published_step(self)
        return self.make_mpl_step()([self.batch], self.context, self.baseline)

    def make_mpl_step(self) -> MplStep:
        """The step in this project's schedule."""
        assert self.schedule in ("split", "joint"), "the other schedules are no steps of this project"
        order = {"split": split, "joint": joint}[self.schedule](self.method, deferred=self.deferred)
        return MplStep(self.method, order, self.teacher, self.student)

    def take_batch(self, batch: Batch) -> None:
        """The next calls are of this batch, in the step's memory format."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def lay_out(images: torch.Tensor) -> torch.Tensor:
            return images.contiguous(memory_format=layout)

        self.batch = batch._replace(
            labelled=lay_out(batch.labelled), weak=lay_out(batch.weak), strong=lay_out(batch.strong)
        )

    def _supervised(self) -> object:
        """One network, supervised, on as many images as the whole step has: the memory that MPL is measured against."""
        every = torch.cat([self.batch.labelled, self.batch.strong])
        targets = torch.arange(len(every), device=self.device) % self.size.classes
        batch = self.batch._replace(labelled=every, targets=targets)
        return SingleNetworkStep(Supervised(), self.student)([batch], self.context)


def take_published_step(step: Step) -> torch.Tensor:
    """The order of the public implementation kekmodel/MPL-pytorch at 7dc6297, with the sign put right.

    The teacher's graph over labelled, weak and strong images is alive throughout the student's step; labelled rows go
    through the student's backward; "before" is read out of the student's larger batch. The labels are sampled from,
    and credited to, the strong view, as in every variant it is compared with.
    """
    method, batch, context, teacher, student = step.method, step.batch, step.context, step.teacher, step.student
    order = Order(("labelled", "weak", "strong"), (), ("labelled", "strong"))
    seen = by_view(teacher.forward(images(batch, order.teacher), context.dropout(TEACHER)), batch, order.teacher)
    labels = method.label(seen.detach(), context.draw(LABEL), batch.unlabelled_index)
    logits = by_view(student.forward(images(batch, order.student), context.dropout(STUDENT)), batch, order.student)
    before = method.validate(logits.of("labelled").detach(), batch.targets)
    loss = method.learn(logits, labels)
    student.accumulate(loss.loss)
    student.apply(context.step)
    after = method.validate(student.observe(batch.labelled, context.dropout(VALIDATION)), batch.targets)
    credit = None if step.kind == "off" else before - after
    teacher_loss = method.teach(seen, batch.targets, loss, credit, context.consistency_weight)
    teacher.accumulate(teacher_loss.loss)
    teacher.apply(context.step)
    return after
