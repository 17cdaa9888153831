"""Makes a tape into a Python function, a line for each operator: nothing is looked up while it runs.

Operators whose arguments never change run once, when the function is made. A result is freed after its last use.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fastmpl.step.tape import Call, Slot, Tape, slots_in
from fastmpl_kernels.ops import run_of

Program = Callable[..., list[Any]]

_aten: Final = torch.ops.aten
# torch's own functions of the commonest operators: the same kernels, by a call that takes half the time of the operator's
FUNCTIONS: Final[dict[Any, Callable[..., Any]]] = {
    _aten.add.Tensor: torch.add,
    _aten.sub.Tensor: torch.sub,
    _aten.mul.Tensor: torch.mul,
    _aten.div.Tensor: torch.div,
    _aten.mul_.Tensor: Tensor.mul_,
    _aten.add_.Tensor: Tensor.add_,
    _aten.copy_.default: Tensor.copy_,
    _aten.clamp.default: torch.clamp,
    _aten.minimum.default: torch.minimum,
    _aten.where.self: torch.where,
    _aten.lt.Scalar: torch.lt,
    _aten.gt.Scalar: torch.gt,
    _aten.ge.Scalar: torch.ge,
    _aten.__rshift__.Scalar: Tensor.__rshift__,
    _aten.bitwise_and.Scalar: torch.bitwise_and,
    _aten.bitwise_xor.Tensor: torch.bitwise_xor,
    _aten.bitwise_not.default: torch.bitwise_not,
    _aten.select.int: torch.select,
    _aten.unbind.int: torch.unbind,
    _aten.stack.default: torch.stack,
    _aten.cat.default: torch.cat,
    _aten.t.default: torch.t,
    _aten.view.default: Tensor.view,
    _aten.full.default: torch.full,
    _aten._foreach_copy_.default: torch._foreach_copy_,
    _aten._foreach_mul.Tensor: torch._foreach_mul,
    _aten._foreach_sub.List: torch._foreach_sub,
    _aten._foreach_lerp_.List: torch._foreach_lerp_,
    _aten._softmax.default: torch._softmax,
    _aten.mm.default: torch.mm,
    _aten.addmm.default: torch.addmm,
    _aten.relu.default: torch.relu,
    _aten.sum.dim_IntList: torch.sum,
    _aten.sum.default: torch.sum,
    _aten.mean.default: torch.mean,
    _aten.mean.dim: torch.mean,
    _aten.pow.Tensor_Scalar: torch.pow,
    _aten.rsub.Scalar: torch.rsub,
    _aten.sqrt.default: torch.sqrt,
    _aten.cos.default: torch.cos,
}


def compile_tape(tape: Tape) -> Program:
    """A function of the tape's inputs that runs its operators and returns the leaves of their result, without a graph."""
    constants, calls = _run_constant_calls(tape)
    names: dict[str, Any] = {}
    lines = [_write_call(call, constants, names) for call in calls]
    for number, dead in _last_uses(calls, tape.returned).items():
        lines[number] += f"; del {', '.join(_name(slot) for slot in dead)}"
    lines.append(f"return [{', '.join(_write(leaf, constants, names) for leaf in tape.returned)}]")
    parameters = ", ".join(_name(slot) for slot in tape.inputs)
    exec("\n    ".join([f"def program({parameters}):", *lines]), names)
    program: Program = names["program"]

    def run(*inputs: Tensor) -> list[Any]:
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            return program(*inputs)

    return run


def _run_constant_calls(tape: Tape) -> tuple[dict[Slot, Any], list[Call]]:
    """The results that are the same in each run, and the calls that are left."""
    changing = slots_in(tape.returned) | slots_in([(call.args, call.kwargs) for call in tape.calls if call.acts])
    written = {slot.storage for slot in changing}
    constants: dict[Slot, Any] = {}
    left = []

    def look_up(leaf: Any) -> Any:
        return constants[leaf] if isinstance(leaf, Slot) else leaf

    for call in tape.calls:
        given = tree_leaves((call.args, call.kwargs))
        fixed = all(leaf in constants if isinstance(leaf, Slot) else not isinstance(leaf, Tensor) for leaf in given)
        if call.acts or not fixed or any(slot.storage in written for slot in call.results if slot):
            left.append(call)
            continue
        args, kwargs = tree_map(look_up, (call.args, call.kwargs))
        out = call.operator(*args, **kwargs)
        results = out if isinstance(out, list | tuple) else [out]
        constants |= {slot: value for slot, value in zip(call.results, results, strict=True) if slot}
    return constants, left


def _last_uses(calls: list[Call], returned: list[Any]) -> dict[int, list[Slot]]:
    """By the number of a call: the results that are not needed after it."""
    last: dict[Slot, int] = {}
    made: set[Slot] = set()
    for number, call in enumerate(calls):
        results = {slot for slot in call.results if slot}
        made |= results
        last |= dict.fromkeys((slots_in(call.args, call.kwargs) & made) | results, number)
    dying: dict[int, list[Slot]] = {}
    for slot in last.keys() - slots_in(returned):
        dying.setdefault(last[slot], []).append(slot)
    return dying


def _write_call(call: Call, constants: dict[Slot, Any], names: dict[str, Any]) -> str:
    given = [_write(value, constants, names) for value in call.args]
    given += [f"{key}={_write(value, constants, names)}" for key, value in call.kwargs.items()]
    function = FUNCTIONS.get(call.operator) or run_of(call.operator)
    line = f"{_write(function, constants, names)}({', '.join(given)})"
    if not any(call.results):
        return line
    targets = ", ".join(_name(slot) if slot else "_" for slot in call.results)
    return f"[{targets}] = {line}" if _returns_several(call.operator) else f"{targets} = {line}"


def _write(value: Any, constants: dict[Slot, Any], names: dict[str, Any]) -> str:
    """An expression for a value: a local variable for a slot, a list of expressions, else a name of its own."""
    if isinstance(value, Slot) and value not in constants:
        return _name(value)
    if isinstance(value, list | tuple) and slots_in(value):
        return f"[{', '.join(_write(each, constants, names) for each in value)}]"
    name = f"constant_{len(names)}"
    names[name] = constants[value] if isinstance(value, Slot) else value
    return name


def _name(slot: Slot) -> str:
    return f"slot_{slot.number}"


def _returns_several(operator: Any) -> bool:
    returns = operator._schema.returns
    return len(returns) != 1 or isinstance(returns[0].type, torch.ListType)
