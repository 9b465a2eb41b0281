"""Count-min: its bounds, and what a correction reads of each estimate."""

import math

import numpy as np
import pytest
import torch

from recgpt.data.hashing import hash_ids
from recgpt.losses.frequency import CountMinEstimate, ExactEstimate


def zipf_counts(n: int) -> np.ndarray:
    return np.maximum(1, 20_000 // np.arange(1, n + 1))


def filled(error: float, failure: float, counts: np.ndarray) -> tuple[CountMinEstimate, torch.Tensor]:
    made = CountMinEstimate(error, failure)
    hashes = torch.from_numpy(hash_ids(list(range(len(counts)))))
    half = torch.from_numpy(counts // 2)
    made.update(hashes, half)
    made.update(hashes.flip(0), (torch.from_numpy(counts) - half).flip(0))
    return made, hashes


def test_the_sketch_s_bounds() -> None:
    """Counts are never too low, and too high by more than error x all in at most a share `failure` of the items."""
    error, failure = 1e-3, 0.05
    counts = zipf_counts(20_000)
    made, hashes = filled(error, failure, counts)
    assert made.counts.shape == (3, 2719)  # ceil(ln 20), ceil(e * 1000)
    over = made.count(hashes).numpy() - counts
    assert over.min() == 0
    assert over.max() > 0
    assert (over > error * counts.sum()).mean() <= failure


def test_a_wide_sketch_is_exact() -> None:
    counts = zipf_counts(100)
    made, hashes = filled(1e-5, 0.01, counts)
    assert made.count(hashes).tolist() == counts.tolist()
    np.testing.assert_allclose(made.log_draw(hashes).exp().numpy(), counts / counts.sum(), rtol=1e-5)
    unknown = torch.from_numpy(hash_ids(["never seen"]))
    assert made.log_draw(unknown).item() == pytest.approx(-math.log(counts.sum()), rel=1e-5)


def test_an_empty_sketch_gives_numbers() -> None:
    assert CountMinEstimate(0.01, 0.1).log_draw(torch.tensor([3])).item() == 0


def test_the_sketch_is_saved_with_the_weights() -> None:
    made, hashes = filled(1e-3, 0.1, zipf_counts(50))
    other = CountMinEstimate(1e-3, 0.1)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.count(hashes), made.count(hashes))


def test_exact_counts() -> None:
    hashes = torch.tensor([9, -5, 4])
    made = ExactEstimate(hashes, torch.tensor([6, 3, 1]))
    made.update(hashes, torch.tensor([100, 100, 100]))
    found = made.log_draw(torch.tensor([4, 9, 9, -5])).exp()
    torch.testing.assert_close(found, torch.tensor([0.1, 0.6, 0.6, 0.3]))
    assert made.state_dict() == {}  # the log tells them anew
