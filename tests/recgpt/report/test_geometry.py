"""Collision load and effective rank against numbers worked out by hand, and against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recgpt.nn.embedding import hash_rows
from recgpt.report.geometry import collision_load, effective_rank, singular_values


def test_load_by_hand() -> None:
    # Rows 0..5 of 8. Items 1 and 2 have the rows {1, 2} in another order: one vector. Item 3's hashes agree.
    load = collision_load(np.array([[0, 1], [1, 2], [2, 1], [3, 3], [4, 5]]), rows=8, most=3)
    assert (load.items, load.rows, load.hashes) == (5, 8, 2)
    assert load.used[0] == 6
    assert load.sharing[0] == 3  # items 0, 1, 2 meet in row 1
    assert load.confused[0] == 1
    # Places: 0 alone; 1 with two others (thrice); 2 with one other (twice); 3, 4, 5 alone: nine in all.
    assert load.others == pytest.approx([4 / 9, 2 / 9, 3 / 9])
    assert load.used[1] == pytest.approx(8 * (1 - (7 / 8) ** 10))
    assert load.sharing[1] == pytest.approx(5 * (1 - (6 / 8) ** 8))
    assert load.confused[1] == pytest.approx(10 * 2 / 64)
    none, one = (7 / 8) ** 8, 8 * (1 / 8) * (7 / 8) ** 7
    assert load.expected_others == pytest.approx([none, one, 1 - none - one])


def test_load_of_a_single_item_and_a_single_row() -> None:
    alone = collision_load(np.array([[2, 5]]), rows=8)
    assert alone.sharing == (0, 0.0)
    assert alone.confused == (0, 0.0)
    assert alone.expected_others == pytest.approx([1, 0, 0, 0, 0])
    crowded = collision_load(np.zeros((4, 1), np.int64), rows=1)
    assert crowded.used == (1, 1.0)
    assert crowded.sharing == (4, 4.0)
    assert crowded.confused == (6, 6.0)
    assert crowded.expected_others == pytest.approx([0, 0, 0, 1, 0])


def test_uniform_hashes_load_the_table_as_expected() -> None:
    slots = hash_rows(torch.arange(1, 3001), 2, 1000).numpy()
    load = collision_load(slots, 1000)
    assert load.used[0] == pytest.approx(load.used[1], abs=8)
    assert load.sharing[0] == pytest.approx(load.sharing[1], abs=8)
    # 8.997 pairs expected, standard deviation 3. With the order of the rows it would be half as many.
    assert abs(load.confused[0] - load.confused[1]) < 9
    assert load.others == pytest.approx(load.expected_others, abs=0.02)


def test_effective_rank_by_hand() -> None:
    assert effective_rank(np.array([1.0, 1, 1, 1])) == pytest.approx(4)
    assert effective_rank(np.array([3.0, 0, 0])) == pytest.approx(1)
    # Shares 1/2, 1/4, 1/4: entropy 1.5 ln 2.
    assert effective_rank(np.array([2.0, 1, 1])) == pytest.approx(2**1.5)
    assert effective_rank(np.zeros(3)) == 0


def test_singular_values_equal_the_full_decomposition() -> None:
    matrix = np.random.default_rng(0).normal(size=(70_000, 6)) @ np.diag([5, 3, 2, 1, 0.5, 0.01])
    assert singular_values(matrix) == pytest.approx(np.linalg.svd(matrix, compute_uv=False), rel=1e-6)
    flat = np.outer(np.arange(1.0, 5), [1.0, 2, 2])
    assert singular_values(flat)[0] == pytest.approx(3 * math.sqrt(30))
    assert effective_rank(singular_values(flat)) == pytest.approx(1, abs=1e-5)
