"""The hash functions against Python's own integers."""

import pytest
import torch

from recgpt.nn.hashing import hash_rows, mix64, rotate_left, shift_right

EDGES = [-1, -(2**63), 2**63 - 1, 1, 0, 1 << 40, -(1 << 40) - 7]
MASK = 2**64 - 1


def splitmix_finalizer(x: int) -> int:
    """splitmix64's published constants, on unsigned integers."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_mix64_equals_unsigned_arithmetic() -> None:
    mixed = mix64(torch.tensor(EDGES))
    assert [x % 2**64 for x in mixed.tolist()] == [splitmix_finalizer(x) for x in EDGES]


@pytest.mark.parametrize("bits", [0, 1, 7, 31, 32, 63])
def test_rotation_equals_unsigned_arithmetic(bits: int) -> None:
    """Also for negative ids, where an arithmetic shift fills the low bits with ones."""
    expected = [((x % 2**64) << bits | (x % 2**64) >> (64 - bits)) & MASK for x in EDGES]
    assert [x % 2**64 for x in rotate_left(torch.tensor(EDGES), bits).tolist()] == expected


@pytest.mark.parametrize("bits", [1, 31, 63])
def test_shift_is_logical(bits: int) -> None:
    assert shift_right(torch.tensor(EDGES), bits).tolist() == [(x % 2**64) >> bits for x in EDGES]


def test_rows_equal_unsigned_arithmetic() -> None:
    """Function j of seed s: the upper 63 bits of splitmix(x xor splitmix(golden (j + s k))), modulo the rows."""
    golden, rows, k, seed = 0x9E3779B97F4A7C15, 65_536, 2, 3
    steps = [splitmix_finalizer(golden * (j + seed * k)) for j in (1, 2)]
    expected = [[(splitmix_finalizer(x ^ step) >> 1) % rows for step in steps] for x in EDGES]
    assert hash_rows(torch.tensor(EDGES), k, rows, seed).tolist() == expected


def test_rows_spread_evenly_over_signed_hashes() -> None:
    hashes = mix64(torch.arange(100_000) - 50_000)
    rows = hash_rows(hashes, 3, 101)
    counts = torch.stack([torch.bincount(rows[:, j], minlength=101) for j in range(3)])
    assert rows.min() >= 0
    assert (counts - 100_000 / 101).abs().max() < 6 * (100_000 / 101) ** 0.5  # six standard deviations


def test_full_collisions_are_as_rare_as_independent_hashes() -> None:
    """n^2 / (2 P^k) pairs share all k rows: 20,000 ids, 100 rows, 3 hashes -> 200 pairs."""
    rows = hash_rows(mix64(torch.arange(1, 20_001)), 3, 100)
    _, counts = torch.unique(rows, dim=0, return_counts=True)
    pairs = int((counts * (counts - 1) // 2).sum())
    assert 200 - 4 * 200**0.5 < pairs < 200 + 4 * 200**0.5


def test_seeds_change_rows() -> None:
    hashes = mix64(torch.arange(1, 1000))
    same = (hash_rows(hashes, 1, 1000, 0) == hash_rows(hashes, 1, 1000, 1)).float().mean()
    assert same < 0.01
