"""Exact feedback with layer-wise rates and frozen layers is double backward through the update, on networks of timm.

The references are written from the definitions: timm's own network with plain operators, timm's own factors of the layers'
rates, AdamW's published rule. Everything is in float64.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.func import functional_call

from fastmpl.config import NetworkConfig
from fastmpl.learners.optimiser_rows import derivatives
from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.protocol import LossPass, TangentPass
from fastmpl.methods.feedback import exact_credit
from fastmpl.models.stochastic import KeyedDropPath, replace_dropout, set_draw
from fastmpl.models.zoo import _fit
from tests.step.worlds import optimiser, relative

CLASSES, IMAGES, SIDE = 3, 4, 32
KEYS = [torch.tensor(number) for number in range(6)]
TARGETS = torch.tensor([0, 1, 2, 0])
DECAY = 0.7


def make(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


NETWORKS = {
    "vit": make("vit_tiny_patch16_224", img_size=SIDE, patch_size=8, embed_dim=24, depth=3, num_heads=2),
    "convnext": make("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), drop_path_rate=0.3),
    "efficientnet": make("test_efficientnet", drop_path_rate=0.3),
    "mobilenetv3": make("mobilenetv3_small_050"),
    "regnet": make("regnety_002"),
    "swin": make(
        "swin_tiny_patch4_window7_224", img_size=SIDE, window_size=4, embed_dim=12, depths=(1, 2), num_heads=(1, 2)
    ),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "layer decay": dict(layer_decay=DECAY, head_lr=3.0),
    "frozen": dict(freeze=2),
    "both": dict(layer_decay=DECAY, freeze=3),
    "all but the classifier": dict(freeze=-1),
}
RARER = ("frozen", "all but the classifier")


class HardSigmoid(nn.Module):
    """By operators that torch can differentiate twice. Its slope is torch's: the float32 nearest to 1/6."""

    SIXTH = torch.tensor(1 / 6, dtype=torch.float32).item()

    def forward(self, x: Tensor) -> Tensor:
        rising = (x + 3).clamp(0, 6)
        return rising * self.SIXTH + (rising / 6 - rising * self.SIXTH).detach()


def differentiate_twice(network: nn.Module) -> None:
    """Puts operators with a second derivative in the place of those that have none, or no forward mode."""
    for parent in list(network.modules()):
        if hasattr(parent, "fused_attn"):
            parent.fused_attn = False  # type: ignore[assignment]
        for name, child in list(parent.named_children()):
            if type(child).__name__ in ("Hardsigmoid", "HardSigmoid"):
                setattr(parent, name, HardSigmoid())


class Pair:
    """A student as it trains, and timm's network that it was made of, with plain operators, as the reference."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.plain = NETWORKS[name]().train()
        module = _fit(deepcopy(self.plain), name, (3, SIDE, SIDE), 0.0, "batch").double()
        replace_dropout(self.plain.double())
        differentiate_twice(self.plain)
        self.config = optimiser("adamw", lr=1e-3, **settings)
        self.factors = rate_factors(self.plain, self.config)
        self.student = PlainLearner(module, self.config, steps=10, average=0.9, shares_prefix=True)

    def credit(self, q: Tensor, step: int) -> Tensor:
        """A step on the labels q, and its credit by one Jacobian-vector product."""
        student, key, x = self.student, KEYS[step], images(step)
        logits = student.forward(x, key)
        student.accumulate(loss_of(logits, q))
        update = student.apply(torch.tensor(step), keep=True)
        gradient = student.gradient([LossPass(images(step + 100), lambda rows: F.cross_entropy(rows, TARGETS), key)])
        (tangent,) = student.tangents(update, [TangentPass(x, logits.detach(), key)], gradient)
        return exact_credit(logits.detach(), tangent, label_smoothing=0.0)

    def double_backward(self, q: Tensor, step: int) -> Tensor:
        """dV(theta'(q)) / dq, from the student's present state."""
        q = q.clone().requires_grad_()
        self.plain.load_state_dict(self.student.module.state_dict())
        theta = dict(self.plain.named_parameters())
        freeze(self.plain, theta.keys() - self.student.parameters.keys())
        set_draw(self.plain, KEYS[step])
        moving = {name: theta[name].detach().requires_grad_() for name in self.student.parameters}
        logits = functional_call(self.plain, moving, (images(step),))
        g = torch.autograd.grad(loss_of(logits, q), list(moving.values()), create_graph=True)
        new = {name: self._updated(name, p, each) for (name, p), each in zip(moving.items(), g, strict=True)}
        set_draw(self.plain, KEYS[step])
        v = F.cross_entropy(functional_call(self.plain, new, (images(step + 100),)), TARGETS)
        return torch.autograd.grad(v, q)[0]

    def _updated(self, name: str, p: Tensor, g: Tensor) -> Tensor:
        """AdamW's rule (Loshchilov and Hutter 2019) at the rate of the parameter's layer."""
        state = self.student.optimiser.inner.state[self.student.parameters[name]]
        b1, b2, t = self.config.momentum, 0.999, float(state["step"]) + 1
        m = b1 * state["exp_avg"] + (1 - b1) * g
        v = b2 * state["exp_avg_sq"] + (1 - b2) * g.square()
        rate = (torch.tensor(self.config.lr) * torch.tensor(self.factors[name])).item()  # rates are float32
        decayed = p * (1 - rate * (self.config.weight_decay if p.ndim > 1 else 0.0))
        moved = v > 0  # where no gradient ever was, neither the step nor its derivative is defined otherwise
        root = (torch.where(moved, v, 1.0) / (1 - b2**t)).sqrt()
        return decayed - rate * torch.where(moved, (m / (1 - b1**t)) / (root + 1e-8), 0.0)


def rate_factors(network: nn.Module, config: NetworkConfig) -> dict[str, float]:
    """By parameter: what timm's layer-wise decay gives, times the factor of the classifier."""
    groups = param_groups_layer_decay(network, layer_decay=config.layer_decay)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    head = {id(p) for p in network.get_classifier().parameters()}
    return {n: scales[id(p)] * (config.head_lr if id(p) in head else 1) for n, p in network.named_parameters()}


def freeze(network: nn.Module, names: set[str]) -> None:
    """Modules whose parameters are all among `names` are in evaluation mode."""
    for path, module in network.named_modules():
        inside = {f"{path}.{name}" for name, _ in module.named_parameters()}
        if path and inside and inside <= names:
            module.eval()


def images(seed: int) -> Tensor:
    return torch.randn(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(logits: Tensor, q: Tensor) -> Tensor:
    return -(q * torch.log_softmax(logits, -1)).sum(-1).mean()


def labels(seed: int) -> Tensor:
    g = torch.Generator().manual_seed(50 + seed)
    return torch.softmax(torch.randn(IMAGES, CLASSES, generator=g, dtype=torch.float64), -1)


def check(name: str, settings: dict[str, Any]) -> Pair:
    """After two steps, so that the moments are not zero."""
    pair = Pair(name, settings)
    for step in (0, 1):
        pair.credit(labels(step), step)
    expected = pair.double_backward(labels(2), 2)
    found = pair.credit(labels(2), 2)
    assert expected.norm() > 1e-6
    assert relative(found, expected) < 1e-10
    return pair


@pytest.mark.parametrize("settings", [pytest.param(s, marks=pytest.mark.slow if s in RARER else ()) for s in SETTINGS])
@pytest.mark.parametrize("name", NETWORKS)
def test_exact_feedback_is_double_backward(name: str, settings: str) -> None:
    check(name, SETTINGS[settings])


def test_drop_path_is_on_where_a_network_has_it() -> None:
    for name in ("convnext", "efficientnet"):
        assert any(isinstance(m, KeyedDropPath) and m.p > 0 for m in Pair(name, {}).student.module.modules()), name


def test_the_identity_fails_where_the_derivative_takes_one_rate_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_rate(stepped: Any, vectors: Any) -> list[Tensor]:
        return [stepped[-1].group["lr"] * v for v in vectors]

    monkeypatch.setattr(derivatives, "_times_rate", one_rate)
    with pytest.raises(AssertionError):
        check("vit", SETTINGS["layer decay"])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_frozen_layers_are_the_first_of_timm(name: str) -> None:
    pair = Pair(name, dict(freeze=2))
    groups = group_parameters(pair.plain, pair.plain.group_matcher(coarse=False))
    frozen = {n for n, p in pair.student.module.named_parameters() if not p.requires_grad}
    assert frozen == {*groups[0], *groups[1]}
    assert frozen.isdisjoint(pair.student.parameters)


@pytest.mark.parametrize("name", ["mobilenetv3", "vit"])
def test_nothing_of_a_frozen_layer_moves_and_nothing_is_kept_for_it(name: str) -> None:
    student = (pair := Pair(name, dict(freeze=3))).student
    frozen = [n for n, p in student.module.named_parameters() if not p.requires_grad]
    paths = [path for path, m in student.module.named_modules() if m in student.frozen]
    assert frozen and paths
    before = {n: v.clone() for n, v in student.module.state_dict().items()}
    pair.credit(labels(0), 0)
    student.infer(images(0))
    assert all(not part.training for part in student.frozen) and student.module.training
    pair.credit(labels(1), 1)
    after = student.module.state_dict()
    inside = [n for n in before if any(n.startswith(f"{path}.") for path in paths)]
    assert all(torch.equal(after[n], before[n]) for n in {*frozen, *inside})
    assert any(not torch.equal(after[n], before[n]) for n in before)
    assert not any(
        key.startswith(f"optimiser/{n}/") or key == f"average/{n}" for key in student.state() for n in frozen
    )
    with student.use_average() as averaged:
        assert all(torch.equal(averaged.state_dict()[n], before[n]) for n in frozen)
