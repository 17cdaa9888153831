"""The record of `fastmpl demo`: `python -m benchmarks.demo` trains what is missing in runs/demo and writes it."""

from pathlib import Path

from benchmarks.records import Record, Row, Scalar, save
from fastmpl.study import demo


def main() -> None:
    tables = demo.demo(Path("runs/demo"), print)
    rows: list[Row] = [
        {"case": title, "arm": row.name, "seed": seed, "value": 100 * accuracy}
        for title, arms in tables.items()
        for row in arms
        for seed, accuracy in enumerate(row.accuracies)
    ]
    config: dict[str, Scalar] = {"baseline": "MPL, feedback off", "unit": " %"}
    print(save(Record("demo", "experiment", rows, config)))


if __name__ == "__main__":
    main()
