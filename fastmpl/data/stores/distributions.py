"""Packs class distributions: all probabilities in half precision, or the k largest and the mass of the others.

A packed row is a number of 16-bit words, so that a table of rows is one array in both formats:

    all      K probabilities
    top k    k class numbers (a word each up to 65,536 classes, else two), k probabilities, the mass of the others

The largest probability comes first. Unpacking spreads the mass of the others evenly over the classes that were not kept.
n rows, K classes.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Words = NDArray[np.uint16]
Probabilities = NDArray[np.float32]
SHORT_NUMBERS = 1 << 16  # classes that a word can number
ONE_AND_ROUNDING, MINUS_ZERO = (
    0x3C10,
    0x8000,
)  # as half precision: 1.0156; what is above is larger, negative or no number


class RowFormat(NamedTuple):
    """A packed row keeps the `kept` largest of `classes` probabilities, or all where the two are equal."""

    classes: int
    kept: int

    @property
    def whole(self) -> bool:
        return self.kept >= self.classes

    @property
    def number_words(self) -> int:
        """Words of a class number."""
        return 1 if self.classes <= SHORT_NUMBERS else 2

    @property
    def words(self) -> int:
        """16-bit words of a packed row."""
        return self.classes if self.whole else self.kept * (self.number_words + 1) + 1

    def pack(self, probabilities: Probabilities) -> Words:
        """Packs [n, K] into [n, words]."""
        if self.whole:
            return probabilities.astype(np.float16).view(np.uint16)
        n, k = len(probabilities), self.kept
        numbers = np.argpartition(probabilities, self.classes - k, axis=1)[:, self.classes - k :]
        order = np.argsort(-np.take_along_axis(probabilities, numbers, 1), axis=1, kind="stable")
        numbers = np.take_along_axis(numbers, order, 1)
        kept = np.take_along_axis(probabilities, numbers, 1).astype(np.float16)
        rest = np.maximum(1 - kept.sum(1, dtype=np.float32), 0).astype(np.float16)
        kind = np.uint16 if self.number_words == 1 else np.uint32
        packed = np.empty((n, self.words), np.uint16)
        packed[:, : self.number_words * k] = np.ascontiguousarray(numbers.astype(kind)).view(np.uint16)
        packed[:, self.number_words * k : -1] = kept.view(np.uint16)
        packed[:, -1] = rest.view(np.uint16)
        return packed

    def unpack(self, packed: Words) -> Probabilities:
        """Unpacks [n, words] to [n, K]; rows sum to 1 within half precision."""
        if self.whole:
            return _to_float32(packed)
        k, width = self.kept, self.number_words
        numbers = np.ascontiguousarray(packed[:, : width * k])
        if width == 2:
            numbers = numbers.view(np.uint32)
        tail = _to_float32(np.ascontiguousarray(packed[:, width * k :]))
        rows = np.empty((len(packed), self.classes), np.float32)
        rows[:] = tail[:, -1:] / np.float32(self.classes - k)
        place = numbers.astype(np.int64) + np.arange(0, rows.size, self.classes)[:, None]
        rows.reshape(-1)[place] = tail[:, :-1]
        return rows

    def top(self, packed: Words) -> tuple[NDArray[np.int64], Probabilities]:
        """The likeliest class of each packed row [n, words], and its probability: [n] each."""
        if self.whole:
            rows = _to_float32(packed)
            number = rows.argmax(1)
            return number, np.take_along_axis(rows, number[:, None], 1)[:, 0]
        numbers = np.ascontiguousarray(packed[:, : self.number_words])
        number = numbers.view(np.uint32 if self.number_words == 2 else np.uint16)[:, 0].astype(np.int64)
        return number, _to_float32(np.ascontiguousarray(packed[:, self.number_words * self.kept]))

    def faults(self, packed: Words) -> str:
        """What is wrong with packed rows [n, words]: numbers that are no probabilities or no classes; empty: nothing."""
        split = 0 if self.whole else self.number_words * self.kept
        numbers, values = packed[:, :split], packed[:, split:]
        if ((values > ONE_AND_ROUNDING) & (values != MINUS_ZERO)).any():
            return "holds numbers that are no probabilities"
        wide = np.ascontiguousarray(numbers).view(np.uint16 if self.number_words == 1 else np.uint32)
        if wide.size and int(wide.max()) >= self.classes:
            return f"names class {int(wide.max())} of {self.classes}"
        return ""


def _to_float32(words: Words) -> Probabilities:
    """Half-precision bits as float32. torch converts many at a time, numpy one by one."""
    return np.asarray(torch.from_numpy(words.view(np.float16)).float().numpy())


def total_variation(a: Probabilities, b: Probabilities) -> NDArray[np.float64]:
    """Total variation of each row, 1/2 sum_c |a_c - b_c|: 0 for equal rows, 1 for rows without a common class."""
    return np.asarray(0.5 * np.abs(a.astype(np.float64) - b).sum(1))
