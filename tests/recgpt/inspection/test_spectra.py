"""Directions of vectors against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recgpt.inspection.spectra import Directions, effective_rank, information_abundance


def abundance(matrix: np.ndarray) -> float:
    return Directions(matrix.shape[1]).add(matrix).spectrum()["information_abundance"]


def test_abundance_of_known_matrices() -> None:
    assert abundance(np.diag([3.0, 2.0, 1.0])) == pytest.approx(2.0)
    assert abundance(np.outer(np.arange(1.0, 6), [1.0, 2, 2])) == pytest.approx(1.0, abs=1e-6)  # collapsed to a line
    orthonormal = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 8)))[0]
    assert abundance(orthonormal) == pytest.approx(8.0)
    ramp = np.arange(12.0).reshape(4, 3)
    assert abundance(ramp) == pytest.approx(1.0652236328, abs=1e-6)
    assert abundance(np.zeros((5, 3))) == 0


def test_abundance_is_of_the_table_as_it_is() -> None:
    ramp = np.arange(12.0).reshape(4, 3)
    assert abundance(np.concatenate([ramp, ramp])) == pytest.approx(abundance(ramp), abs=1e-6)
    assert abundance(7 * ramp) == pytest.approx(abundance(ramp), abs=1e-6)
    assert abundance(ramp - ramp.mean(0)) == pytest.approx(1.0, abs=1e-6)  # another quantity: a mean is a direction too


def test_a_random_table_uses_nearly_its_whole_width() -> None:
    table = np.random.default_rng(0).normal(size=(1000, 10))
    assert abundance(table) == pytest.approx(9.24, abs=0.15)


def test_effective_rank_by_hand() -> None:
    assert effective_rank(np.array([1.0, 1, 1, 1])) == pytest.approx(4)
    assert effective_rank(np.array([3.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(np.array([2.0, 1, 1])) == pytest.approx(2**1.5)  # shares 1/2, 1/4, 1/4: entropy 1.5 ln 2
    assert effective_rank(np.zeros(3)) == 0
    assert information_abundance(np.zeros(0)) == 0


def test_parts_equal_the_full_decomposition() -> None:
    matrix = np.random.default_rng(0).normal(size=(70_000, 6)) @ np.diag([5, 3, 2, 1, 0.5, 0.01])
    directions = Directions(6)
    for part in np.split(matrix.astype(np.float32), 7):
        directions.add(part)
    assert directions.singular_values() == pytest.approx(np.linalg.svd(matrix, compute_uv=False), rel=1e-5)
    spectrum = directions.spectrum()
    assert (spectrum["n"], spectrum["width"]) == (70_000, 6)
    assert spectrum["length"] == pytest.approx(math.sqrt((matrix**2).sum(1).mean()), rel=1e-6)
    assert spectrum["first_direction"] == pytest.approx(25 / (25 + 9 + 4 + 1 + 0.25), abs=0.01)


def test_fewer_vectors_than_width() -> None:
    spectrum = Directions(5).add(np.eye(2, 5)).spectrum()
    assert spectrum["singular_values"] == pytest.approx([1, 1])
    assert spectrum["effective_rank"] == pytest.approx(2)
