"""A tape runs the operators of a call again: views, draws, constants and what autograd made included."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fastmpl.step.tape import record, try_out
from fastmpl.step.tape_program import FUNCTIONS, compile_tape


def test_results_follow_the_inputs_and_outer_tensors() -> None:
    weight = torch.randn(4, 3, requires_grad=True)

    def call(x: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad((x @ weight.t()).square().sum(), weight)
        return gradient

    tape = record(call, torch.randn(5, 3))
    program = compile_tape(tape)
    with torch.no_grad():
        weight.mul_(2)
    x = torch.randn(5, 3)
    assert torch.equal(program(x)[0], call(x))


def test_a_constant_that_is_written_is_made_anew_in_each_run() -> None:
    def call(x: Tensor) -> Tensor:
        total = torch.zeros(3)
        total[1:].add_(x)
        return total + torch.ones(3)

    x = torch.ones(2)
    tape = record(call, x)
    program = compile_tape(tape)
    for _ in range(2):
        assert torch.equal(program(x)[0], torch.tensor([1.0, 2.0, 2.0]))


def test_what_is_returned_is_not_shared_by_two_runs() -> None:
    tape = record(lambda x: torch.zeros(3), torch.ones(1))
    program = compile_tape(tape)
    program(torch.ones(1))[0].add_(1)
    assert torch.equal(program(torch.ones(1))[0], torch.zeros(3))


def test_draws_go_on_as_they_would() -> None:
    def call(x: Tensor) -> Tensor:
        return x + torch.rand(3)

    x = torch.zeros(3)
    tape = record(call, x)
    program = compile_tape(tape)
    torch.manual_seed(0)
    expected = [call(x), call(x)]
    torch.manual_seed(0)
    found = [program(x)[0], program(x)[0]]
    assert all(map(torch.equal, expected, found))


def test_recording_frees_what_the_call_frees() -> None:
    freed: list[bool] = []

    def call(x: Tensor) -> Tensor:
        large = x + 1
        result = large.sum()
        seen = weakref.ref(large.untyped_storage())
        del large
        gc.collect()
        freed.append(seen() is None)
        return result

    record(call, torch.ones(1000))
    assert freed == [True]


def test_operators_whose_results_nobody_needs_are_left_out() -> None:
    tape = record(lambda x: (x + 1, (x * 2).relu())[0].detach(), torch.ones(3))
    assert [str(call.operator) for call in tape.calls] == ["aten.add.Tensor"]


def test_the_function_of_an_operator_calls_that_operator_alone() -> None:
    a, b = torch.rand(3, 3), torch.rand(3, 3)
    given: dict[str, tuple[object, ...]] = {
        "where.self": (a > b, a, b),
        "clamp.default": (a, None, 0.5),
        "__rshift__.Scalar": (torch.arange(9), 1),
        "bitwise_and.Scalar": (torch.arange(9), 3),
        "bitwise_xor.Tensor": (torch.arange(9), torch.arange(9)),
        "bitwise_not.default": (torch.arange(9),),
        "select.int": (a, 0, 1),
        "unbind.int": (a, 1),
        "stack.default": ([a, b], 1),
        "cat.default": ([a, b], 1),
        "view.default": (a, [9]),
        "addmm.default": (a, a, b),
        "sum.dim_IntList": (a, [0], True),
        "mean.dim": (a, [0], True),
        "full.default": ([2, 3], 0.5),
        "_softmax.default": (a, 1, False),
        "_foreach_copy_.default": ([a], [b]),
        "_foreach_mul.Tensor": ([a, b], torch.tensor(2.0)),
        "_foreach_sub.List": ([a, b], [b, a]),
        "_foreach_lerp_.List": ([a], [b], [torch.tensor(0.5)]),
    }
    for operator, function in FUNCTIONS.items():
        name = f"{operator.overloadpacket.__name__}.{operator._overloadname}"
        unary = len(operator._schema.arguments) == 1 or name in ("sum.default", "mean.default")
        numbers = name.endswith("Scalar")
        args = given.get(name, (a,) if unary else (a, 0.5) if numbers else (a, b))
        theirs, ours = _copied(args), _copied(args)
        expected = operator(*theirs)
        with _Names() as seen, torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            found = function(*ours)
        assert seen.operators == [operator], name
        results = (theirs, ours) if operator._schema.is_mutable else (expected, found)
        assert all(a is b or a == b if not isinstance(a, Tensor) else torch.equal(a, b)
                   for a, b in zip(*map(tree_leaves, results), strict=True)), name  # fmt: skip


def _copied(args: tuple[object, ...]) -> tuple[object, ...]:
    copies: tuple[object, ...] = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, args)
    return copies


class _Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[object] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(func)
        return func(*args, **(kwargs or {}))


def test_recording_changes_no_number_and_no_draw() -> None:
    weight, other = torch.ones(3), torch.ones(3)

    def call(x: Tensor) -> Tensor:
        weight.view(3)[1:].add_(torch.rand(2))
        torch._foreach_mul_([other], 2.0)
        return x + weight

    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    tape = record(call, torch.zeros(3))
    assert torch.equal(weight, torch.ones(3))
    assert torch.equal(other, torch.ones(3))
    assert torch.equal(torch.rand(2), expected)
    assert len(tape.written) == 2


@pytest.mark.parametrize("differs", [False, True])
def test_a_tape_that_gives_something_else_is_found(differs: bool) -> None:
    weight = torch.ones(3)

    def call(x: Tensor) -> Tensor:
        watched = torch._C._len_torch_dispatch_stack() > 0
        weight.add_(x * 3 if watched or not differs else x + x + x + 1e-3)
        return x.sum()

    x = torch.rand(3)
    tape = record(call, x)
    expected = 1 + x * 3 if not differs else 1 + (x + x + x + 1e-3)
    result, is_equal = try_out(tape, compile_tape(tape), call, x)
    assert is_equal is not differs
    assert torch.equal(result, x.sum())
    assert torch.equal(weight, expected)
