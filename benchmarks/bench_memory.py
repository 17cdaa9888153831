"""Peak live bytes and arithmetic of a step by schedule, predicted on fake tensors: `python -m benchmarks.bench_memory`.

Two networks at 224 px (WRN-28-2: 32 px), B = 8, U = 56, float32, channels-last, scalar feedback unless said otherwise,
labels and feedback on the strong view. Nothing is computed: the bytes are those of every storage a real step would hold
(see fastmpl.analysis.accounting).
"""

import argparse

from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.records import Record, Row, Scalar, save
from benchmarks.steps import EFFICIENTNET_B7, RESNET50, WRN, Size, Step
from fastmpl.analysis.accounting import Account, count_arithmetic, measure

ARMS: dict[str, dict[str, object]] = {
    "published order": {"schedule": "published"},
    "joint": {"schedule": "joint"},
    "joint, deferred": {"schedule": "joint", "deferred": True},
    "split": {},
    "split, deferred": {"deferred": True},
    "split, deferred, recomputed": {"deferred": True, "recompute": True},
    "split, deferred, exact (jvp)": {"deferred": True, "kind": "exact"},
    "split, deferred, exact (difference)": {"deferred": True, "kind": "exact", "tangent": "difference"},
    "split, deferred, recomputed, exact": {"deferred": True, "recompute": True, "kind": "exact"},
    "supervised, one network": {"schedule": "supervised"},
    "supervised, one network, recomputed": {"schedule": "supervised", "recompute": True},
}


def account(size: Size, **settings: object) -> Account:
    """Bytes and operators of a step. A learner's state is there from the start: the first step is as any other."""
    with FakeTensorMode():
        step = Step(size, channels_last=True, **settings)  # type: ignore[arg-type]
        return measure(step, *step.held)


def work(size: Size, **settings: object) -> int:
    """Its arithmetic, in a run of its own: the counter holds on to what recomputation lets go."""
    with FakeTensorMode():
        return count_arithmetic(Step(size, channels_last=True, **settings))  # type: ignore[arg-type]


def rows(size: Size) -> list[Row]:
    found = {arm: (account(size, **settings), work(size, **settings)) for arm, settings in ARMS.items()}
    published, flops = found["published order"]
    one, _ = found["supervised, one network"]
    return [
        {
            "network": size.model,
            "step": arm,
            "peak": f"{bytes.peak_bytes / 2**30:.2f} GiB",
            "of the published order": f"{bytes.peak_bytes / published.peak_bytes:.2f}x",
            "of supervised": f"{bytes.peak_bytes / one.peak_bytes:.2f}x",
            "arithmetic": f"{done / flops:.2f}x",
            "operators": bytes.operations,
        }
        for arm, (bytes, done) in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"resnet50": RESNET50, "efficientnet_b7": EFFICIENTNET_B7, "wrn_28_2": WRN}
    parser.add_argument("--networks", nargs="*", choices=sizes, default=list(sizes))
    found: list[Row] = []
    for name in parser.parse_args().networks:
        for row in rows(sizes[name]):
            print("  ".join(str(value) for value in row.values()), flush=True)
            found.append(row)
    config: dict[str, Scalar] = {
        "labelled": 8,
        "unlabelled": 56,
        "pixels": "224, 32 for wrn_28_2",
        "layout": "channels last",
        "precision": "float32",
        "tensors": "fake",
    }
    print(save(Record("memory", "table", found, config)))


if __name__ == "__main__":
    main()
