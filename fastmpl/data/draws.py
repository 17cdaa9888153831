"""Random numbers for the data: a pure function of seed, purpose and further words, vectorised in numpy.

They equal those of `fastmpl_kernels.keyed` bit for bit (splitmix64 of Steele, Lea and Flood, OOPSLA 2014), here in
unsigned numpy arithmetic, so that a data thread needs no torch. There is no generator and no state: resuming, the number
of ranks and paired ablations cannot change a draw.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

UInt = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Purpose(IntEnum):
    """The first word of every key. The numbers are part of every saved result: never reuse or renumber one."""

    TEST = 101
    POINTS = 102
    SPLIT = 103
    NOISE = 104
    ORDER = 105
    VIEWS = 106
    EXPERIMENT = 107
    REPLACE = 108


class StreamName(IntEnum):
    """The streams of images of a run. The numbers are words of keys: never renumber one."""

    LABELLED = 1
    TRUSTED = 2
    UNLABELLED = 3
    FINETUNE = 4
    DISTIL = 5


def splitmix64(x: UInt) -> UInt:
    """The 64-bit finaliser of splitmix64, element-wise; arithmetic wraps."""
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def key(seed: int, *words: int) -> UInt:
    """A 0-D key from a seed and further words (a purpose, a stream, an epoch).

    The seed is mixed alone first. Otherwise seed 0 with word 2 would equal seed 1 with word 1, since words are added.
    """
    result = np.asarray(splitmix64(np.asarray(seed % 2**64, dtype=np.uint64)))
    for word in words:
        result = extend(result, word)
    return result


def extend(keys: UInt, word: int | NDArray[np.int64]) -> UInt:
    """Keys extended by one word; an array of words gives an array of keys."""
    with np.errstate(over="ignore"):
        return np.asarray(splitmix64(keys + np.asarray(word).astype(np.uint64)))


def uniform(keys: UInt, item: NDArray[np.int64], columns: int) -> NDArray[np.float32]:
    """Float32 [n, columns] in the open interval (0, 1), for n items under one key or under a key each."""
    bits = extend(extend(keys, item)[:, None], np.arange(columns))
    return ((bits >> np.uint64(41)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def normal(keys: UInt, item: NDArray[np.int64], columns: int) -> NDArray[np.float32]:
    """Standard normal float32 [n, columns], by Box and Muller's transform (1958)."""
    u = uniform(keys, item, 2 * columns).astype(np.float64)
    radius, angle = np.sqrt(-2.0 * np.log(u[:, :columns])), 2.0 * np.pi * u[:, columns:]
    return (radius * np.cos(angle)).astype(np.float32)


def permutation(key: UInt, n: int) -> NDArray[np.int64]:
    """A permutation of 0..n-1. splitmix64 maps no two numbers to one, so there are no ties for a sort to break."""
    return np.argsort(extend(key, np.arange(n)))
