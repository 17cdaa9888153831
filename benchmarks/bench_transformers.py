"""Memory and arithmetic of a step of two transformers, on fake tensors: `python -m benchmarks.bench_transformers`.

Peak live bytes of a deferred step, against supervised training of one such network on as many images, with fused
attention in every pass but the tangent, and with the math form in all; and the tangent's share of the step's arithmetic,
operators and products of attention. Float32. Fused attention is counted as its result and one number a row (see
fastmpl.analysis.accounting), and the tangent's math form with all its scores. A minute a network on an idle core.
"""

import argparse
from collections import Counter
from typing import Any, Final, NamedTuple

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.records import Record, Row, Scalar, save
from benchmarks.steps import DINOV2_S, VIT_B, VIT_S, Size, Step
from fastmpl.analysis.accounting import ARITHMETIC, is_bookkeeping, measure, tensors_of

NETWORKS: Final = {"vit_s": VIT_S, "vit_b": VIT_B, "dinov2_s": DINOV2_S}
ARMS: Final[dict[str, dict[str, Any]]] = {
    "supervised, one network": {"schedule": "supervised"},
    "scalar": {"deferred": True},
    "exact": {"deferred": True, "kind": "exact"},
}


def peak_bytes(size: Size, **settings: Any) -> int:
    """The peak of a step, its networks, optimisers and batch included."""
    with FakeTensorMode():
        step = Step(size, **settings)
        return measure(step, *step.held).peak_bytes


class Traffic(TorchDispatchMode):
    """Counts operators, their arithmetic, and the bytes of their arguments and results, by operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arithmetic, self.bytes, self.operators = Counter[str](), Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not is_bookkeeping(func):
            name, rule = str(func.overloadpacket), ARITHMETIC.get(func.overloadpacket)
            self.operators[name] += 1
            self.bytes[name] += sum(x.numel() * x.element_size() for x in tensors_of(args, kwargs or {}, out))
            self.arithmetic[name] += 0 if rule is None else rule(*args, **(kwargs or {}), out_val=out)
        return out


class Shares(NamedTuple):
    """What of an exact step is the tangent's."""

    arithmetic: float
    attention: float  # the part of the arithmetic in its products of attention
    bytes: float  # that operators read and write
    operators: float


def count_tangent(size: Size) -> Shares:
    """The tangent's shares of an exact, deferred step."""
    with FakeTensorMode():
        step, own, total = Step(size, deferred=True, kind="exact"), Traffic(), Traffic()
        plain = step.student.tangents

        def tangents(*arguments: Any) -> list[Tensor]:
            with own:
                return plain(*arguments)

        step.student.tangents = tangents  # type: ignore[method-assign,assignment]
        with total:
            step()
    arithmetic = total.arithmetic.total()
    return Shares(
        own.arithmetic.total() / arithmetic,
        own.arithmetic["aten.bmm"] / arithmetic,
        own.bytes.total() / total.bytes.total(),
        own.operators.total() / total.operators.total(),
    )


def rows(size: Size) -> list[Row]:
    shares = count_tangent(size)
    made: list[Row] = []
    for form in ("fused", "math"):
        peaks = {arm: peak_bytes(size, attention=form, **settings) for arm, settings in ARMS.items()}
        for arm, peak in peaks.items():
            exact = arm == "exact" and form == "fused"
            made.append(
                {
                    "network": f"{size.model.removeprefix('timm:')}, {size.pixels} px",
                    "images": size.labelled + size.unlabelled,
                    "attention": form,
                    "step": arm,
                    "peak": f"{peak / 2**30:.2f} GiB",
                    "of supervised": f"{peak / peaks['supervised, one network']:.2f}x",
                    "of scalar": "" if arm.startswith("supervised") else f"{peak / peaks['scalar']:.2f}x",
                    "tangent, of the arithmetic": f"{shares.arithmetic:.1%}" if exact else "",
                    "its products of attention": f"{shares.attention:.1%}" if exact else "",
                    "of the bytes": f"{shares.bytes:.1%}" if exact else "",
                    "of the operators": f"{shares.operators:.1%}" if exact else "",
                }
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    found: list[Row] = []
    for name in parser.parse_args().networks:
        for row in rows(NETWORKS[name]):
            print("  ".join(str(value) for value in row.values()), flush=True)
            found.append(row)
    config: dict[str, Scalar] = {"precision": "float32", "optimiser": "nesterov", "schedule": "split, deferred"}
    print(save(Record("transformers", "table", found, config | {"tensors": "fake"})))


if __name__ == "__main__":
    main()
