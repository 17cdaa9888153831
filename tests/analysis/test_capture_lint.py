"""The capture lint: steps that could be captured pass, and each planted fault is named with its line."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from fastmpl.analysis.capture_lint import lint
from fastmpl.analysis.capture_trace import find_line
from fastmpl.learners.forward_rules import use_forward_rules
from fastmpl.models import build, set_draw, use_batch_statistics

CPU = torch.device("cpu")

library = torch.library.Library("lint_test", "DEF")
for name in ("twice", "unknown"):
    library.define(f"{name}(Tensor x) -> Tensor")
    library.impl(name, lambda x: x * 2, "CPU")
torch.library.register_fake("lint_test::twice", torch.empty_like, lib=library)


@dataclass
class State:
    """A stand-in for a run: a network, its optimiser, static inputs, knobs on the device, and room for mistakes."""

    model: str = "conv"
    foreach: bool = False
    net: nn.Module = field(init=False)
    images: Tensor = field(init=False)
    targets: Tensor = field(init=False)
    rate: Tensor = field(init=False)
    draw: Tensor = field(init=False)
    python_rate: float = 0.1
    counter: int = 0
    kept: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.net = build(
            self.model, classes=5, image_shape=(1, 8, 8), dropout=0.2, norm="batch", width=8, depth=2, seed=0
        )
        self.average = [p.detach().clone() for p in self.net.parameters()]
        self.images, self.targets = torch.empty(6, 1, 8, 8), torch.empty(6, dtype=torch.int64)
        self.rate, self.draw = torch.empty(()), torch.zeros((), dtype=torch.int64)
        self.baseline = torch.zeros(())
        self.knob = torch.tensor(0.1)
        self.on_host = torch.zeros((), device="cpu")
        self.optimiser = torch.optim.SGD(
            self.net.parameters(), lr=0.1, momentum=0.9, fused=not self.foreach, foreach=self.foreach
        )
        self.optimiser.param_groups[0]["lr"] = self.rate  # the constructor would read a tensor


def advance(state: State) -> None:
    state.rate.fill_(0.1 / (1 + state.counter))
    state.draw.add_(1)
    state.python_rate *= 0.9
    state.counter += 1


def learn(state: State) -> Tensor:
    set_draw(state.net, state.draw)
    state.optimiser.zero_grad()
    loss = F.cross_entropy(state.net(state.images), state.targets)
    loss.backward()
    nn.utils.clip_grad_norm_(state.net.parameters(), 1.0)
    state.optimiser.step()
    return loss.detach()


def sample(state: State) -> None:
    """Pseudo labels drawn from the network; the change of a loss, kept on the device."""
    with torch.no_grad(), use_batch_statistics(state.net):
        labels = torch.multinomial(state.net(state.images).softmax(1), 1).squeeze(1)
        before = F.cross_entropy(state.net(state.images), labels)
    after = learn(state)
    state.baseline.mul_(0.99).add_(before - after, alpha=0.01)


def differentiate(state: State) -> None:
    """A tangent at the old parameters along a gradient at the new ones."""
    old = {k: v.detach().clone() for k, v in state.net.named_parameters()}
    learn(state)
    with use_batch_statistics(state.net):
        new = dict(state.net.named_parameters())
        gradient = torch.autograd.grad(F.cross_entropy(state.net(state.images), state.targets), list(new.values()))
        with torch.no_grad(), forward_ad.dual_level():
            duals = {k: forward_ad.make_dual(old[k], state.rate * g) for k, g in zip(old, gradient, strict=True)}
            forward_ad.unpack_dual(functional_call(state.net, duals, (state.images,)).log_softmax(1)).tangent.sum()


def average(state: State) -> None:
    learn(state)
    torch._foreach_lerp_(state.average, [p.detach() for p in state.net.parameters()], [0.1] * len(state.average))


def call_registered_operator(state: State) -> None:
    state.baseline.copy_(torch.ops.lint_test.twice(learn(state)))


@pytest.mark.parametrize("step", [sample, differentiate, average, call_registered_operator])
def test_a_step_that_could_be_captured_has_no_fault(step):
    assert lint(State, step, advance) == []


# Each is one mistake, made in the middle of a step that is otherwise clean. `s` is the state, `t` a loss on the device.
def branch(s, t):
    if t > 0:
        t.add_(1)


def branch_on_nan(s, t):
    if torch.isnan(t):
        t.zero_()


def drop_at_random(s, t):
    if random.random() < 0.5:
        t.add_(1)


def multiply_by_step_number(s, t):
    t.mul_(s.counter)


def change_shape(s, t):
    s.images[: 2 + s.counter].sum()


def act_every_other_step(s, t):
    if s.counter % 2:
        t.exp()


def act_every_tenth_step(s, t):
    if s.counter % 10 == 9:
        t.exp()


def differ_every_twelfth_step(s, t):
    if s.counter % 12 == 5:
        t.add_(1)
    else:
        t.add_(2)


class MoveTo(nn.Module):
    def __init__(self, device):
        super().__init__()
        self.device = device

    def forward(self, x):
        return x.to(self.device)


class Counting(nn.Module):
    """Takes a branch at every hundredth pass."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x.exp() if self.calls % 100 == 0 else x * 1


COUNTING = Counting()


def rebind_baseline(s, t):
    s.baseline = s.baseline * 0.99 + t


FAULTS = {
    "item": ("host read", lambda s, t: t.item()),
    "float": ("host read", lambda s, t: float(t)),
    "float of a knob": ("host read", lambda s, t: float(s.knob)),
    "if": ("host read", branch),
    "if isnan": ("host read", branch_on_nan),
    "tolist": ("host read", lambda s, t: s.images.tolist()),
    "numpy": ("host read", lambda s, t: t.numpy()),
    "f-string": ("host read", lambda s, t: f"{t:.3f}"),
    "print": ("host read", lambda s, t: print(t)),
    "nonzero": ("shape from data", lambda s, t: s.targets.nonzero()),
    "boolean index": ("shape from data", lambda s, t: s.images[s.targets > 0]),
    "unique": ("shape from data", lambda s, t: s.targets.unique()),
    "cpu": ("host traffic", lambda s, t: t.cpu()),
    "to cpu, not blocking": ("host traffic", lambda s, t: t.to("cpu", non_blocking=True)),
    "to a CPU device object": ("host traffic", lambda s, t: t.to(CPU)),
    "to a CPU device by keyword": ("host traffic", lambda s, t: s.images.to(device=CPU, non_blocking=True)),
    "to a device object and a type": ("host traffic", lambda s, t: t.to(CPU, torch.float64)),
    "to the device of another": ("host traffic", lambda s, t: t.to(s.on_host)),
    "type with the device of another": ("host traffic", lambda s, t: t.to(s.on_host, non_blocking=True, copy=True)),
    "moved to the host by a module": ("host traffic", lambda s, t: MoveTo(CPU)(t)),
    "made on the CPU": ("host traffic", lambda s, t: torch.zeros((), device=CPU)),
    "made on no named device": ("host traffic", lambda s, t: torch.arange(3)),
    "made on the CPU and used": ("host traffic", lambda s, t: s.images + torch.zeros(8, device=CPU)),
    "made on the CPU by shape": ("host traffic", lambda s, t: torch.empty_like(s.images, device=CPU)),
    "made on the CPU by a tensor": ("host traffic", lambda s, t: t.new_zeros(3, device=CPU)),
    "copied to a buffer of the host": ("host traffic", lambda s, t: s.on_host.copy_(t, non_blocking=True)),
    "copied from a buffer of the host": ("host traffic", lambda s, t: t.copy_(s.on_host, non_blocking=True)),
    "number of the host": ("host traffic", lambda s, t: t * s.on_host),
    "work on the host alone": ("host traffic", lambda s, t: s.on_host.add_(1)),
    "tensor of a number": ("host traffic", lambda s, t: t * torch.tensor(2.0)),
    "tensor of a list": ("host traffic", lambda s, t: t * torch.tensor([1.0, 2.0])),
    "from numpy": ("host traffic", lambda s, t: t * torch.from_numpy(np.ones(1, np.float32))),
    "own generator": ("host draw", lambda s, t: torch.rand(3, generator=torch.Generator())),
    "Python's random": ("host draw", lambda s, t: t.mul_(random.random())),
    "numpy's random": ("host draw", lambda s, t: t.mul_(float(np.random.rand()))),
    "stochastic depth by random": ("host draw", drop_at_random),
    "rate as a number": ("varies", lambda s, t: s.baseline.add_(t, alpha=-s.python_rate)),
    "step counted in Python": ("varies", multiply_by_step_number),
    "new shape": ("varies", change_shape),
    "other operators every other step": ("varies", act_every_other_step),
    "another operator every tenth step": ("varies", act_every_tenth_step),
    "another number every twelfth step": ("varies", differ_every_twelfth_step),
    "module that counts its passes": ("varies", lambda s, t: COUNTING(t)),
    "tensor rebound": ("rebinds", rebind_baseline),
    "result kept": ("grows", lambda s, t: s.kept.append(t * 1)),
    "operator without a fake form": ("fails", lambda s, t: torch.ops.lint_test.unknown(t)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    kind, plant = FAULTS[fault]
    found = lint(lambda: State("perceptron"), lambda state: plant(state, learn(state)), advance)
    assert kind in {f.kind for f in found}, found
    if kind != "grows" and "random" not in fault:  # what no single line does
        assert any(f.where.startswith("analysis/test_capture_lint.py:") for f in found if f.kind == kind), found


def test_an_optimiser_that_reads_its_rate_is_found_with_the_line_that_calls_it():
    (fault,) = lint(lambda: State(foreach=True), learn, advance)
    assert fault.kind == "host read"
    assert fault.where.startswith("analysis/test_capture_lint.py:")


def test_inputs_that_are_replaced_instead_of_filled_are_found():
    def replace(state: State) -> None:
        advance(state)
        state.images = torch.empty(6, 1, 8, 8)

    assert {f.kind for f in lint(State, learn, replace)} == {"rebinds"}


def test_a_fault_reads_as_a_line_with_its_place():
    (fault,) = lint(lambda: State("perceptron"), lambda state: learn(state).item(), advance)
    assert str(fault).startswith("analysis/test_capture_lint.py:")
    assert "host read" in str(fault)


class Lines(TorchDispatchMode):
    """Notes the line of each operator."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.add(find_line())
        return func(*args, **(kwargs or {}))


def test_an_operator_of_a_forward_mode_rule_has_the_line_of_its_caller():
    layers = nn.Sequential(nn.LayerNorm(3))
    with Lines() as seen, use_forward_rules(layers), torch.no_grad():
        F.layer_norm(torch.zeros(2, 3), (3,))
    assert {line.partition(":")[0] for line in seen.found} == {"analysis/test_capture_lint.py"}
