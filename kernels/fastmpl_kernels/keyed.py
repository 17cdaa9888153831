"""Random numbers that are a pure function of a key, without a generator or any other state.

What a generator draws depends on its earlier draws. A resumed run, another number of ranks, another schedule and a captured
graph would each draw other numbers. Here draw `c` of item `i` under a key is `splitmix64(splitmix64(key + i) + c)`, with
the finaliser of Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. Its int64 arithmetic
wraps around and gives the same bits on every device. A CUDA graph can capture it, because the key is a 0-D tensor.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _unsigned_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """The 64-bit finaliser of splitmix64, element-wise on int64."""
    x = x + GOLDEN
    x = (x ^ _unsigned_shift(x, 30)) * MIX_1
    x = (x ^ _unsigned_shift(x, 27)) * MIX_2
    return x ^ _unsigned_shift(x, 31)


def combine(key: Int[Tensor, ""], *words: int | Tensor) -> Int[Tensor, ""]:
    """Makes a new key from a key and further words (a purpose, a step, a layer's number)."""
    for word in words:
        key = splitmix64(key + word)
    return key


def uniform(key: Int[Tensor, ""], item: Int[Tensor, "*n"], columns: int) -> Float[Tensor, "*n columns"]:
    """Float32 numbers in the open interval (0, 1): `columns` draws for each item, a function of its number alone."""
    column = torch.arange(columns, device=item.device)
    bits = splitmix64(splitmix64(key + item).unsqueeze(-1) + column)
    return (_unsigned_shift(bits, 41).to(torch.float32) + 0.5) * (1.0 / (1 << 23))
