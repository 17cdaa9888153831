"""How fast stored distributions come back: `python -m benchmarks.bench_store`.

A synthetic table of 1.28 million rows of 1,000 classes, the 16 largest kept, is written once (in --folder) and mapped.
Random batches of 1,024 rows are looked up packed, and expanded to all classes, from a warm cache on one thread; beside
it, writing as many bytes as an expanded batch has: to memory, which is what no expansion of new rows can beat for long,
and again and again to the same 4 MB, which stay in a cache.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import compare
from benchmarks.records import Record, Row, save
from fastmpl.data.stores.distributions import Probabilities
from fastmpl.data.stores.store import Store, open_store
from fastmpl.data.stores.store_writer import StorePlan, StoreWriter

CLASSES, KEPT, BATCH, PART, REPEATS = 1000, 16, 1024, 8192, 50
FAR = 64  # batches, 262 MB: far beyond a core's own caches


def draw_peaked(rows: int, seed: int) -> Probabilities:
    """Rows as a trained network gives them: most of the mass on a few classes."""
    logits = 3 * np.random.default_rng(seed).standard_normal((rows, CLASSES), np.float32)
    np.exp(logits, out=logits)
    return np.asarray(logits / logits.sum(1, keepdims=True))


def write_store(folder: Path, rows: int) -> Store:
    """The synthetic table; every part of it repeats the same rows, since what they hold does not change the time."""
    plan = StorePlan(rows, CLASSES, KEPT, images="synthetic", teacher="noise")
    writer, part = StoreWriter(folder, plan), draw_peaked(PART, seed=0)
    for shard in writer.missing():
        first, last = plan.range(shard)
        writer.write(shard, (part[: min(PART, last - start)] for start in range(first, last, PART)))
    writer.finish()
    return open_store(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_280_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_store"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    store = write_store(asked.folder, asked.rows)
    generator = np.random.default_rng(1)
    batches = itertools.cycle([generator.integers(0, asked.rows, BATCH) for _ in range(1000)])
    for table in store.tables:
        table.sum()  # warms the cache of pages
    packed, expanded = store.lookup(next(batches)), np.empty((BATCH, CLASSES), np.float32)
    memory = itertools.cycle(np.zeros((FAR, BATCH, CLASSES), np.float32))
    record = compare(
        {
            "look up, packed": lambda: store.lookup(next(batches)),
            "look up and expand": lambda: store.probabilities(next(batches)),
            "expand": lambda: store.header.form.unpack(packed),
            "write as many bytes to memory": lambda: next(memory).fill(0.5),
            "write as many bytes to a cache": lambda: expanded.fill(0.5),
        },
        rounds=asked.rounds,
        warmup=3,
        baseline="write as many bytes to memory",
        name="store_time",
        config={"rows": asked.rows, "classes": CLASSES, "kept": KEPT, "batch": BATCH},
        repeats=REPEATS,
    )
    size = sum(shard.bytes for shard in store.header.shards)
    rows: list[Row] = []
    for row in record.rows:
        seconds = row["cpu_median"]
        assert isinstance(seconds, float)
        rows.append(
            {
                "operation": row["variant"],
                "rows/s of one core": f"{BATCH / seconds:,.0f}",
                "GB/s of expanded rows": f"{BATCH * CLASSES * 4 / seconds / 1e9:.1f}",
            }
        )
        print("  ".join(map(str, rows[-1].values())))
    error = store.header.error.mean_total_variation
    print(f"{asked.rows:,} rows in {size / 1e6:.1f} MB; storing moved {error:.3f} of a row's mass on average")
    print(save(record))
    print(save(Record("store", "table", rows, {**record.config, "bytes": size, "mean_total_variation": error})))


if __name__ == "__main__":
    main()
