"""Memory and arithmetic of a step of two transformers, on fake tensors: `python -m benchmarks.bench_transformers`.

Peak live bytes of a deferred step, against supervised training of one such network on as many images, with fused
attention in every pass but the tangent, and with the math form in all; and the tangent's share of the step's arithmetic,
operators and products of attention. Float32. Fused attention is counted as its result and one number a row (see
fastmpl.analysis.accounting), and the tangent's math form with all its scores. A minute a network on an idle core.
"""

import argparse
from typing import Any, Final

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.records import Record, Row, Scalar, save
from benchmarks.steps import DINOV2_S, VIT_B, VIT_S, Size, Step
from fastmpl.analysis.accounting import count_by_operator, measure

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


def count_tangent(size: Size) -> tuple[float, float]:
    """The tangent's share of an exact step's arithmetic, and the share of its products of attention alone."""
    with FakeTensorMode():
        step = Step(size, deferred=True, kind="exact")
        plain, inside = step.student.tangent, []

        def tangent(*arguments: Any) -> Tensor:
            found: list[Tensor] = []
            inside.append(count_by_operator(lambda: found.append(plain(*arguments))))
            return found[0]

        step.student.tangent = tangent  # type: ignore[method-assign,assignment]
        total = count_by_operator(step).total()
    (own,) = inside
    return own.total() / total, own["aten.bmm"] / total


def rows(size: Size) -> list[Row]:
    tangent, attention = count_tangent(size)
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
                    "tangent, of the arithmetic": f"{tangent:.1%}" if exact else "",
                    "its products of attention": f"{attention:.1%}" if exact else "",
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
