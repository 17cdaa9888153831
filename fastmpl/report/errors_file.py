"""errors.csv: every validation and test image that was classified wrongly, for a spreadsheet or a program."""

import csv
import io
from collections.abc import Iterator
from typing import Final

import numpy as np

from fastmpl.data.errors import printable
from fastmpl.telemetry.predictions import Record

FILE: Final = "errors.csv"
HEADER: Final = ("split", "file", "true", "predicted", "confidence", "second", "second_confidence")


def _rows(record: Record) -> Iterator[tuple[str, ...]]:
    for split, found in record.splits.items():
        wrong = np.flatnonzero(~found.right)
        for row in wrong[np.argsort(-found.confidence[wrong], kind="stable")].tolist():
            true, predicted, second = (record.classes[of[row]] for of in (found.truth, found.predicted, found.second))
            shares = [f"{of[row]:.6f}" for of in (found.confidence, found.second_confidence)]
            yield split, printable(str(found.names[row])), true, predicted, shares[0], second, shares[1]


def format_errors(record: Record) -> str:
    """The table as text: of each split, the most confident error first."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(HEADER)
    table.writerows(_rows(record))
    return out.getvalue()
