"""batch_norm_act against torch's batch norm and leaky ReLU on one CPU thread: `python -m benchmarks.bench_batch_norm`.

The shapes are all batch norms of WRN-28-2 at 128 images, channels-last. Freed memory stays with the process (two
settings of glibc's allocator, see `keep_memory`), for all variants alike: otherwise every call first touches fresh pages,
which on a virtual machine costs more than the arithmetic and says nothing about the kernels.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from benchmarks.environment import HEAP, keep_memory
from benchmarks.harness import Sample, sample
from benchmarks.records import Record, Row, save
from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import batch_norm_act, native
from fastmpl_kernels.batch_norm_act.settings import NUMBER, Norm, Running

SHAPES = [(128, 16, 32, 32), (128, 32, 32, 32), (128, 64, 16, 16), (128, 128, 8, 8)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SLOPE = 0.1
Op = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return batch_norm_act(x, weight, bias, activation="leaky_relu", slope=SLOPE)


def torch_s(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.leaky_relu(F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5), SLOPE)


def saved_bytes(op: Op, leaves: list[Tensor]) -> int:
    """What the backward pass keeps, parameters included, each storage once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        op(*leaves)
    return sum(kept.values())


def variants(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[dict[str, Callable[[], object]], list[Tensor]]:
    """The three passes of both, on the same tensors; and our kernels for forward and backward with no autograd."""
    generator = torch.Generator().manual_seed(0)
    x, d = (
        torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight, bias = torch.rand(shape[1], generator=generator) + 0.5, torch.randn(shape[1], generator=generator)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    plain = tuple(t.detach() for t in leaves)

    def forward(op: Op) -> object:
        with torch.no_grad():
            return op(*plain)

    def both(op: Op) -> object:
        return torch.autograd.grad(op(*leaves), leaves, d)

    def tangent(op: Op) -> object:  # as a learner calls it
        with torch.no_grad(), forward_ad.dual_level():
            tangents = (d, plain[1], plain[2])
            duals = (forward_ad.make_dual(p, t) for p, t in zip(plain, tangents, strict=True))  # type: ignore[no-untyped-call]
            return forward_ad.unpack_dual(op(*duals))  # type: ignore[no-untyped-call]

    def kernels() -> object:
        x, weight, bias = plain
        norm = Norm(weight, bias, None, NUMBER["leaky_relu"], SLOPE)
        _, moments = native.train(x, norm, Running(None, None, 0.1, 1e-5))
        return native.backward(d, x, moments, norm)

    passes = {"forward": forward, "forward and backward": both, "jvp": tangent}
    ops: dict[str, Op] = {"ours": ours, "torch": torch_s}
    made: dict[str, Callable[[], object]] = {
        f"{name}, {who}": partial(run, op) for name, run in passes.items() for who, op in ops.items()
    }
    return {**made, "kernels alone": kernels}, leaves


def row(shape: tuple[int, ...], name: str, rounds: int) -> Row:
    calls, leaves = variants(shape, DTYPES[name])

    def take_turns(*names: str) -> dict[str, list[Sample]]:
        return sample({name: calls[name] for name in names}, rounds=rounds, warmup=3)

    # Every comparison in a rotation of its own: what else ran between the two would leave caches and heap in a state that
    # one of them pays more for (after torch's JVP in bfloat16, a forward takes half as long again).
    against = [take_turns(f"{call}, ours", f"{call}, torch") for call in ("forward", "forward and backward", "jvp")]
    beside = take_turns("forward, ours", "jvp, ours")
    x = leaves[0].detach()
    alone = take_turns("kernels alone") | sample({"copy": partial(torch.empty_like(x).copy_, x)}, rounds, warmup=3)
    assert dispatch.last_backend("batch_norm_act") == "native", "build the native library first: pip install ."

    def ratio(a: list[Sample], b: list[Sample]) -> float:
        return median(p.cpu / q.cpu for p, q in zip(a, b, strict=True))

    samples = alone | against[0] | against[1] | against[2]
    return {
        "dtype": name,
        "shape": "x".join(map(str, shape)),
        "n": rounds,
        **{f"{call} (ms)": 1e3 * median(s.cpu for s in found) for call, found in samples.items()},
        "speedup": ratio(samples["forward and backward, torch"], samples["forward and backward, ours"]),
        "forward speedup": ratio(samples["forward, torch"], samples["forward, ours"]),
        "jvp speedup": ratio(samples["jvp, torch"], samples["jvp, ours"]),
        "jvp with its forward, over a forward": ratio(beside["jvp, ours"], beside["forward, ours"]),
        "saved bytes, of torch's": saved_bytes(ours, leaves) / saved_bytes(torch_s, leaves),
    }


def geometric(rows: list[Row], column: str) -> float:
    values = [value for r in rows if isinstance(value := r[column], float)]
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in DTYPES:
        found = [row(shape, name, rounds) for shape in SHAPES]
        ratios = [c for c, value in found[0].items() if isinstance(value, float) and not c.endswith("(ms)")]
        mean: Row = {"dtype": name, "shape": "geometric mean", "n": rounds, **{c: geometric(found, c) for c in ratios}}
        rows += [*found, mean]
        for r in rows[-5:]:
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in r.items()}, flush=True)
    config = {"threads": 1, "clock": "cpu", "rounds": rounds, "layout": "channels last", "slope": SLOPE}
    print(save(Record("batch-norm", "table", rows, {**config, **HEAP})))


if __name__ == "__main__":
    keep_memory("benchmarks.bench_batch_norm")
    main()
