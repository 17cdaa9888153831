"""A tape runs the operators of a call again: views, draws, constants and what autograd made included."""

import gc
import weakref

import torch
from torch import Tensor

from fastmpl.step.tape import record
from fastmpl.step.tape_program import compile_tape


def test_results_follow_the_inputs_and_outer_tensors() -> None:
    weight = torch.randn(4, 3, requires_grad=True)

    def call(x: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad((x @ weight.t()).square().sum(), weight)
        return gradient

    _, tape = record(call, torch.randn(5, 3))
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
    _, tape = record(call, x)
    program = compile_tape(tape)
    for _ in range(2):
        assert torch.equal(program(x)[0], torch.tensor([1.0, 2.0, 2.0]))


def test_what_is_returned_is_not_shared_by_two_runs() -> None:
    _, tape = record(lambda x: torch.zeros(3), torch.ones(1))
    program = compile_tape(tape)
    program(torch.ones(1))[0].add_(1)
    assert torch.equal(program(torch.ones(1))[0], torch.zeros(3))


def test_draws_go_on_as_they_would() -> None:
    def call(x: Tensor) -> Tensor:
        return x + torch.rand(3)

    x = torch.zeros(3)
    _, tape = record(call, x)
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
    _, tape = record(lambda x: (x + 1, (x * 2).relu())[0].detach(), torch.ones(3))
    assert [str(call.operator) for call in tape.calls] == ["aten.add.Tensor"]
