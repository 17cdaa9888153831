"""Steps of Meta Pseudo Labels as other libraries take them, on the networks and batches of `benchmarks.steps`.

The student's update is one step of SGD with Nesterov momentum on the teacher's soft labels; the teacher's gradient of the
student's validation loss V after that update goes through it:

    double backward     the update as a graph, by torch alone
    higher, torchopt    the same, with their differentiable optimisers
    betty               its `darts` hypergradient: a finite difference of the student's loss, by betty's engine

Every network has torch's own batch norm and activation, channels-last. No library need be installed: `pip install higher`,
`torchopt`, `betty-ml`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.steps import NESTEROV, Size
from fastmpl.data.batch import Batch
from fastmpl.learners.arithmetic import Precision, autocast
from fastmpl.learners.optimiser import decayed_names
from fastmpl.models.layout import channels_last
from fastmpl.models.norms import use_batch_statistics

Tensors = dict[str, Tensor]
CPU = torch.device("cpu")


def soft_loss(logits: Tensor, q: Tensor) -> Tensor:
    """The student's loss: cross-entropy with the teacher's distributions, which keep their graph."""
    return -(q * logits.float().log_softmax(-1)).sum(-1).mean()


def uda_loss(weak: Tensor, strong: Tensor) -> Tensor:
    """The consistency loss of `fastmpl.methods.uda` at its defaults."""
    return soft_loss(strong, weak.float().softmax(-1))


def sgd_(parameters: Mapping[str, Tensor], momentum: Tensors, gradients: Tensors) -> Tensors:
    """The parameters after a step of SGD with Nesterov momentum, differentiable by the gradients; the momentum moves."""
    decayed, moved = decayed_names(parameters), {}
    for name, p in parameters.items():
        g = gradients[name] + NESTEROV.weight_decay * p if name in decayed else gradients[name]
        held = NESTEROV.momentum * momentum[name] + g
        moved[name] = p - NESTEROV.lr * (g + NESTEROV.momentum * held)
        momentum[name] = held.detach()
    return moved


LossOf = Callable[[Callable[[Tensor], Tensor]], Tensor]  # of a network's call
Update = Callable[[LossOf], Tensors]  # one step of a student's optimiser: its parameters after it, with a graph


def make_update(student: nn.Module) -> Update:
    """By torch alone."""
    parameters = dict(student.named_parameters())
    momentum = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def update(loss_of: LossOf) -> Tensors:
        found = torch.autograd.grad(loss_of(student), list(parameters.values()), create_graph=True)
        return sgd_(parameters, momentum, dict(zip(parameters, found, strict=True)))

    return update


def make_higher_update(student: nn.Module) -> Update:
    """By `higher`, on whose copy of the network the loss is taken. Raises ImportError without it."""
    higher = import_module("higher")
    parameters = dict(student.named_parameters())
    decayed = decayed_names(parameters)
    optimiser = torch.optim.SGD(
        [
            {"params": [p], "weight_decay": NESTEROV.weight_decay if name in decayed else 0.0}
            for name, p in parameters.items()
        ],
        NESTEROV.lr,
        NESTEROV.momentum,
        nesterov=True,
    )

    def update(loss_of: LossOf) -> Tensors:
        with higher.innerloop_ctx(student, optimiser, copy_initial_weights=False) as (network, differentiable):
            differentiable.step(loss_of(network))
            for p, state in zip(parameters.values(), differentiable.state, strict=True):
                optimiser.state[p]["momentum_buffer"] = state[0]["momentum_buffer"].detach()
            return dict(zip(parameters, network.parameters(), strict=True))

    return update


def make_torchopt_update(student: nn.Module) -> Update:
    """By torchopt, which puts the moved parameters into the network. Raises ImportError without it."""
    torchopt = import_module("torchopt")
    decay = torchopt.transform.add_decayed_weights(
        NESTEROV.weight_decay,
        mask=lambda parameters: tuple(p.ndim > 1 for p in parameters),  # as `decayed_names`
    )
    sgd = torchopt.sgd(NESTEROV.lr, NESTEROV.momentum, nesterov=True, moment_requires_grad=True)
    optimiser = torchopt.MetaOptimizer(student, torchopt.chain(decay, sgd))
    places = [(name, *_place(student, name)) for name, _ in student.named_parameters()]

    def update(loss_of: LossOf) -> Tensors:
        before = {name: held[key] for name, held, key in places}
        optimiser.step(loss_of(student))
        moved = {name: held[key] for name, held, key in places}
        for name, held, key in places:
            held[key] = before[name]
        torchopt.stop_gradient(optimiser)  # of its momentum
        return moved

    return update


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds a parameter, and its key there."""
    owner, _, key = name.rpartition(".")
    return module.get_submodule(owner)._parameters, key


@dataclass
class DoubleBackwardStep:
    """Exact feedback by differentiating through the student's update. `prepare` is called with each network."""

    size: Size
    prepare: Callable[[nn.Module], None]
    precision: Precision = "float32"
    dtype: torch.dtype = torch.float32
    make_update: Callable[[nn.Module], Update] = make_update

    def __post_init__(self) -> None:
        def network(seed: int) -> nn.Module:
            module = channels_last(self.size.network(seed))
            self.prepare(module)
            return channels_last(module.to(self.dtype))

        batch = self.size.batch()
        self.batch = batch._replace(
            **{
                name: getattr(batch, name).to(self.dtype).contiguous(memory_format=torch.channels_last)
                for name in ("labelled", "weak", "strong")
            }
        )
        self.student, self.teacher = network(1), network(2)
        self.update = self.make_update(self.student)
        self.momentum = {name: torch.zeros_like(p) for name, p in self.teacher.named_parameters()}

    @property
    def held(self) -> tuple[object, ...]:
        states = [module.state_dict() for module in (self.student, self.teacher)]
        return (*states, self.momentum, tuple(part for part in self.batch if part is not None))

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(CPU, self.precision)

    def validation_loss(self, q: Tensor) -> tuple[Tensor, Tensors]:
        """V after the student's step on the labels q, with a graph back to q; and the moved parameters."""

        def loss_of(network: Callable[[Tensor], Tensor]) -> Tensor:
            with self._autocast():
                return soft_loss(network(self.batch.strong), q)

        moved = self.update(loss_of)
        with self._autocast(), use_batch_statistics(self.student):
            logits = functional_call(self.student, moved, (self.batch.labelled,))
        return F.cross_entropy(logits.to(q.dtype), self.batch.targets), moved

    def __call__(self) -> Tensor:
        batch, teacher = self.batch, self.teacher
        with self._autocast():
            seen = teacher(torch.cat([batch.labelled, batch.strong])).float()
            with torch.no_grad(), use_batch_statistics(teacher):
                weak = teacher(batch.weak).float()
        labelled, strong = seen[: len(batch.labelled)], seen[len(batch.labelled) :]
        value, moved = self.validation_loss(strong.softmax(-1))
        loss = F.cross_entropy(labelled, batch.targets) + uda_loss(weak, strong) + value
        parameters = dict(teacher.named_parameters())
        found = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            after = sgd_(parameters, self.momentum, dict(zip(parameters, found, strict=True)))
            for module, new in ((self.student, moved), (teacher, after)):
                for name, p in module.named_parameters():
                    p.copy_(new[name])
        return value.detach()

    def feedback_by_logits(self) -> Tensor:
        """The gradient of V by the teacher's logits of the strong view [U, K], from the networks as they are."""
        with torch.no_grad():
            leaf = self._strong_logits().requires_grad_()
        value, _ = self.validation_loss(leaf.softmax(-1))
        return torch.autograd.grad(value, leaf)[0]

    def by_weights(self, of_logits: Tensor) -> Tensor:
        """The gradient by the teacher's weights, as one vector, from that by its logits."""
        logits = self._strong_logits()
        found = torch.autograd.grad(logits, list(self.teacher.parameters()), of_logits.to(logits.dtype))
        return torch.cat([each.flatten() for each in found])

    def _strong_logits(self) -> Tensor:
        with use_batch_statistics(self.teacher):
            both: Tensor = self.teacher(torch.cat([self.batch.labelled, self.batch.strong]))
        return both[len(self.batch.labelled) :]


def make_betty_engine(like: DoubleBackwardStep, *, feedback_alone: bool = False) -> Any:
    """Betty's engine for the same networks, in float32; its `train_step` is a step. Raises ImportError without betty.

    feedback_alone: whether V is the teacher's whole loss, without weight decay: the momentum after the first step is then
    the feedback's gradient.
    """
    configs, problems = import_module("betty.configs"), import_module("betty.problems")
    batch: Batch = like.batch

    class Student(problems.ImplicitProblem):  # type: ignore[misc,name-defined]
        def training_step(self, _: Any) -> Tensor:
            both = self.teacher(torch.cat([batch.labelled, batch.strong]))
            return soft_loss(self(batch.strong), both[len(batch.labelled) :].softmax(-1))

    class Teacher(problems.ImplicitProblem):  # type: ignore[misc,name-defined]
        def training_step(self, _: Any) -> Tensor:
            value = F.cross_entropy(self.student(batch.labelled), batch.targets)
            if feedback_alone:
                return value
            both = self(torch.cat([batch.labelled, batch.strong]))
            with torch.no_grad():
                weak = self(batch.weak)
            own = F.cross_entropy(both[: len(batch.labelled)], batch.targets)
            return own + uda_loss(weak, both[len(batch.labelled) :]) + value

    def make(kind: Any, module: nn.Module, config: Any) -> Any:
        decay = 0.0 if feedback_alone else NESTEROV.weight_decay
        lr, momentum = NESTEROV.lr, NESTEROV.momentum
        optimizer = torch.optim.SGD(module.parameters(), lr, momentum, weight_decay=decay, nesterov=True)
        name, loader = kind.__name__.lower(), [(batch.targets,)]
        return kind(name=name, module=module, optimizer=optimizer, train_data_loader=loader, config=config)

    student = make(Student, like.student, configs.Config(type="darts", unroll_steps=1, retain_graph=True))
    teacher = make(Teacher, like.teacher, configs.Config(retain_graph=True, allow_unused=True))
    engine = import_module("betty.engine").Engine(
        config=configs.EngineConfig(train_iters=10**9, valid_step=10**9),
        problems=[teacher, student],
        dependencies={"u2l": {teacher: [student]}, "l2u": {student: [teacher]}},
    )
    engine.train()
    for each in (teacher, student):
        each.train()
    return engine


def betty_gradient(like: DoubleBackwardStep) -> Tensor:
    """The feedback's gradient by the teacher's weights, of betty's first step."""
    engine = make_betty_engine(like, feedback_alone=True)
    engine.train_step()
    state = engine.problems[0].optimizer.state
    return torch.cat([state[p]["momentum_buffer"].flatten() for p in engine.problems[0].trainable_parameters()])
