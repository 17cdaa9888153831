"""Random numbers of the data are a pure function of their key, and the numbers of the kernels' own generator."""

import numpy as np
import pytest
import torch

from fastmpl.data import draws
from fastmpl_kernels import keyed


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7])
def test_draws_are_those_of_the_kernels_bit_for_bit(seed: int) -> None:
    item = np.array([0, 1, 59_999, 2**40])
    theirs = keyed.uniform(keyed.combine(keyed.splitmix64(torch.tensor(seed)), 106, 3, 12), torch.from_numpy(item), 9)
    ours = draws.uniform(draws.key(seed, 106, 3, 12), item, 9)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_a_key_each_equals_one_key_at_a_time() -> None:
    keys = draws.extend(draws.key(3), np.array([5, 6]))
    both = draws.uniform(keys, np.array([10, 11]), 4)
    np.testing.assert_array_equal(both[1:], draws.uniform(draws.key(3, 6), np.array([11]), 4))


def test_draws_stay_inside_the_open_interval_and_fill_it() -> None:
    u = draws.uniform(draws.key(0), np.arange(50_000), 2)
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    np.testing.assert_allclose(u.mean(0), 0.5, atol=0.01)
    assert abs(np.corrcoef(u.T)[0, 1]) < 0.02


def test_normal_draws_have_mean_zero_and_deviation_one() -> None:
    z = draws.normal(draws.key(0), np.arange(50_000), 2)
    np.testing.assert_allclose(z.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(z.std(0), 1, atol=0.02)
    assert abs(np.corrcoef(z.T)[0, 1]) < 0.02


def test_another_seed_or_word_draws_other_numbers() -> None:
    item = np.arange(8)
    drawn = [draws.uniform(k, item, 1) for k in (draws.key(0, 1), draws.key(1, 1), draws.key(0, 2), draws.key(0, 1, 0))]
    assert all(not np.array_equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_a_permutation_holds_every_number_once() -> None:
    shuffled = draws.permutation(draws.key(0), 1000)
    np.testing.assert_array_equal(np.sort(shuffled), np.arange(1000))
    assert not np.array_equal(shuffled, np.arange(1000))
