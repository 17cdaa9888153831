"""Asserts on the account of a data set."""

from fastmpl.data.dataset import Arrays
from fastmpl.data.inventory import count_left_out


def assert_adds_up(arrays: Arrays, entries: int | None = None) -> None:
    """What is used and what is left out is all that there is: `entries`, where the test has counted them itself."""
    assert arrays.inventory is not None
    used = len(arrays.train_labels) + len(arrays.test_labels) + arrays.inventory.helpers
    assert used + count_left_out(arrays.problems) == arrays.inventory.entries
    assert entries is None or arrays.inventory.entries == entries
