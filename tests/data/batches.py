"""Batches of training compared and joined, for tests."""

import torch

from fastmpl.data.batch import Batch


def assert_equal(left: Batch, right: Batch) -> None:
    """Bit for bit."""
    torch.testing.assert_close(tuple(left), tuple(right), atol=0, rtol=0)


def concatenate(parts: tuple[Batch, ...]) -> Batch:
    """The batches of several ranks as one."""
    columns = zip(*parts, strict=True)
    return Batch(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]
