"""What a user should know of a data set before training: the account of its files, and what is unusual about its split."""

import numpy as np

from fastmpl.data.dataset import Arrays
from fastmpl.data.inventory import account_line
from fastmpl.data.split import Split


def account_of(arrays: Arrays) -> list[str]:
    """The account of the data set's root, one line; none for a built-in set."""
    if arrays.inventory is None:
        return []
    images = len(arrays.train_labels) + len(arrays.test_labels)
    return [account_line(arrays.inventory, images, arrays.problems)]


def split_remarks(arrays: Arrays, parts: Split) -> list[str]:
    """Sentences on the classes, and on labelled images that stand in for unlabelled ones."""
    remarks = list(arrays.remarks)
    if len(parts.unlabelled) and np.isin(parts.unlabelled, parts.labelled).all():
        remarks.append(
            f"there are no unlabelled images: the {len(parts.labelled):,} labelled ones stand in for them, without labels"
        )
    return remarks
