"""The credit of pseudo labels: the effect of the student's update on its validation loss V.

The paper (Pham et al. 2021, "Meta Pseudo Labels", CVPR, section 2) credits a whole batch of sampled labels with one
scalar, h = V(theta) - V(theta'). Cross-entropy is linear in its target, so dV(theta')/dq is available exactly, per
image and class, from one Jacobian-vector product of the student: r_ic. For SGD the scalar's mean over the draws of the
labels is the same to first order in the learning rate; the exact credit has no noise of the draw.

Sign: h > 0 and r < 0 where the labels helped. A learner's feedback loss descends: it raises the probability of labels
that lowered V. Scale: every kind estimates the same dE[V]/dpsi, so that one weight means one thing.
U unlabelled images on this rank, K classes.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl_kernels import keyed

Kind = Literal["exact", "per_example", "scalar", "off"]
Control = Literal["none", "shuffled", "flipped"]


def exact_credit(
    logits: Float[Tensor, "U K"], tangent: Float[Tensor, "U K"], *, label_smoothing: float
) -> Float[Tensor, "U K"]:
    """r_ic = dV(theta')/dq_ic = (1 - eps_s) / U * d log softmax(z_i)_c, the student's logits z moving along `tangent`.

    `tangent` is dz/de at theta + e D g', where g' = grad V(theta') and D = (dF/dg)^T of the update theta' = theta - F(g).
    """
    centre = (torch.softmax(logits, -1) * tangent).sum(-1, keepdim=True)
    return (1 - label_smoothing) / len(logits) * (tangent - centre)


def read_at_label(credit: Float[Tensor, "U K"], index: Int[Tensor, "U"]) -> Float[Tensor, "U"]:
    """The credit of the class drawn: r_ic at c = index_i."""
    return credit.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def apply_control(credit: Float[Tensor, "*U"], control: Control, key: Int[Tensor, ""]) -> Float[Tensor, "*U"]:
    """The control of an experiment: `flipped` negates the credit, `shuffled` keeps its size and removes its meaning.

    Shuffled: a scalar gets a random sign each step, rows are permuted over the images.
    """
    if control == "flipped":
        return -credit
    if control == "shuffled":
        if credit.ndim == 0:
            return credit * (keyed.uniform(key, torch.zeros_like(key), 1)[0] - 0.5).sign().to(credit.dtype)
        order = keyed.uniform(key, torch.arange(len(credit), device=credit.device), 1)[:, 0].argsort()
        return credit[order]
    return credit
