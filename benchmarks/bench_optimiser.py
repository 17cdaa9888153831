"""sgd_ema against torch's fused SGD and a foreach lerp on one CPU thread: `python -m benchmarks.bench_optimiser`.

The tensors are the parameters of WRN-28-2 and of ResNet-50. Both do the same step: Nesterov momentum, weight decay, and
the moving average of the new parameters.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.environment import keep_memory
from benchmarks.harness import sample
from benchmarks.records import Record, Row, save
from fastmpl_kernels import dispatch
from fastmpl_kernels.sgd_ema import global_norm, sgd_ema

MOMENTUM, WEIGHT_DECAY, DECAY = 0.9, 5e-4, 0.999


def wide_resnet_28_2() -> list[tuple[int, ...]]:
    """The shapes of WRN-28-2's parameters (Zagoruyko and Komodakis, 2016) for 10 classes."""
    shapes: list[tuple[int, ...]] = [(16, 3, 3, 3)]
    previous = 16
    for width in (32, 64, 128):
        for block in range(4):
            channels = previous if block == 0 else width
            shapes += [(channels,), (channels,), (width, channels, 3, 3), (width,), (width,), (width, width, 3, 3)]
            if block == 0:
                shapes.append((width, channels, 1, 1))
        previous = width
    return [*shapes, (previous,), (previous,), (10, previous), (10,)]


def resnet50() -> list[tuple[int, ...]]:
    import timm

    return [tuple(p.shape) for p in timm.create_model("resnet50").parameters()]


NETWORKS = {"WRN-28-2": wide_resnet_28_2, "ResNet-50": resnet50}


def variants(shapes: list[tuple[int, ...]]) -> dict[str, Callable[[], object]]:
    """Each variant works on tensors of its own, allocated alike."""

    def draw() -> list[Tensor]:
        return [torch.randn(shape) * 1e-2 for shape in shapes]

    params, grads, buffers, averages, lr = draw(), draw(), draw(), draw(), torch.tensor(1e-3)
    theirs, their_averages = [nn.Parameter(p) for p in draw()], draw()
    for p, g in zip(theirs, draw(), strict=True):
        p.grad = g
    optimiser = torch.optim.SGD(
        theirs, lr=torch.tensor(1e-3), momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True, fused=True
    )

    def ours() -> None:
        sgd_ema(
            params, grads, buffers, averages,
            lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True, decay=DECAY,
        )  # fmt: skip

    def torch_s() -> None:
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(their_averages, list[Tensor](theirs), 1 - DECAY)

    return {
        "sgd_ema": ours,
        "torch, fused step and lerp": torch_s,
        "global_norm": lambda: global_norm(grads),
        "torch, norm": lambda: nn.utils.get_total_norm(grads),
    }


def rows(network: str, rounds: int, repeats: int) -> list[Row]:
    calls = variants(NETWORKS[network]())
    samples = sample(calls, rounds=rounds, warmup=3, repeats=repeats)
    assert dispatch.last_backend("sgd_ema") == "native", "build the native library first: pip install ."
    found: list[Row] = []
    for name, baseline in (("sgd_ema", "torch, fused step and lerp"), ("global_norm", "torch, norm")):
        a, b = ([s.cpu for s in samples[who]] for who in (name, baseline))
        ratios = torch.tensor(b, dtype=torch.float64) / torch.tensor(a, dtype=torch.float64)
        low, middle, high = torch.quantile(ratios, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
        times = {"ours (ms)": 1e3 * sorted(a)[rounds // 2], "torch (ms)": 1e3 * sorted(b)[rounds // 2]}
        speedups = {"speedup_q1": low, "speedup": middle, "speedup_q3": high}
        found.append({"network": network, "op": name, "n": rounds, **times, **speedups})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    found = [*rows("WRN-28-2", rounds, repeats=20), *rows("ResNet-50", rounds, repeats=1)]
    for row in found:
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    config = {"threads": 1, "clock": "cpu", "rounds": rounds, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    print(save(Record("optimiser", "table", found, config)))


if __name__ == "__main__":
    keep_memory("benchmarks.bench_optimiser")
    main()
