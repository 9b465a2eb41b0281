"""Rotary, learned and reverse positions, and the biases of distance and time, by hand and by effect."""

import math

import numpy as np
import pytest
import torch

from recgpt.data.events import NO_TIME
from recgpt.nn.positions import (
    N_TIME_BUCKETS,
    BiasConfig,
    LearnedPositions,
    RelativeBias,
    ReversePositions,
    Rotary,
    distance_index,
    relative_bias,
    time_buckets,
)

SECOND = 1_000_000


def heads(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rotary_scores_depend_on_distance_alone() -> None:
    rotary = Rotary(8, 64)
    q, k = heads(1, 1, 8), heads(1, 1, 8, seed=1)
    near = [(rotary(q, i + 5) * rotary(k, i)).sum() for i in range(0, 50, 7)]
    torch.testing.assert_close(torch.stack(near), near[0].expand(len(near)), atol=1e-5, rtol=1e-5)
    assert abs((rotary(q, 9) * rotary(k, 0)).sum() - near[0]) > 1e-3
    torch.testing.assert_close(rotary(q, 17).norm(), q.norm())


def test_rotary_by_hand() -> None:
    """The first pair turns by one radian a position, whatever the axes between."""
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(1, 3, 2, 5, 4)
    turned = Rotary(4, 8)(x, start=2)
    for t in range(3):
        expected = torch.tensor([math.cos(2 + t), math.sin(2 + t), -math.sin((2 + t) / 100), math.cos((2 + t) / 100)])
        torch.testing.assert_close(turned[0, t], expected.expand(2, 5, 4))


def test_learned_positions_by_hand() -> None:
    positions = LearnedPositions(2, 5)
    rows = positions.table.weight
    torch.testing.assert_close(positions(torch.ones(3, 2, 2), 3, None), (1 + rows[3:]).expand(3, 2, 2))


def test_reverse_positions_by_hand() -> None:
    """Later real positions are counted whichever side the padding is on; the first token has the last row."""
    positions = ReversePositions(2, 6)
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]).bool()
    index = positions.index(torch.zeros(4, 4, 2), real)
    assert index[0].tolist() == [5, 2, 1, 0]
    assert index[1, :2].tolist() == [5, 0]
    assert index[2, 2:].tolist() == [5, 0]
    assert index[3, 3] == 5
    assert positions.index(torch.zeros(1, 4, 2), None).tolist() == [[5, 2, 1, 0]]
    torch.testing.assert_close(positions(torch.zeros(4, 4, 2), 0, real), positions.table.weight[index])
    with pytest.raises(ValueError, match="start: 3; reverse positions need the whole window in one pass"):
        positions(torch.zeros(1, 1, 2), 3, None)


def test_distance_index_is_hstus() -> None:
    assert distance_index(4).tolist() == [[3, 4, 5, 6], [2, 3, 4, 5], [1, 2, 3, 4], [0, 1, 2, 3]]


def test_time_buckets_are_hstus() -> None:
    """floor(ln(max(|d|, 1)) / .301) of whole seconds: a day is 37, a year 57; unknown times have a row of their own."""
    gaps = {0: 0, 1: 0, 2: 2, 3: 3, 60: 13, 3600: 27, 86_400: 37, 365 * 86_400: 57}
    time = torch.tensor([[seconds * SECOND for seconds in gaps]]) + 1_600_000_000 * SECOND
    assert time_buckets(time, len(gaps))[0, 0].tolist() == list(gaps.values())
    assert torch.equal(time_buckets(time, 2), time_buckets(time, len(gaps))[:, -2:])
    time[0, 3] = NO_TIME
    buckets = time_buckets(time, len(gaps))[0]
    assert (buckets[3] == N_TIME_BUCKETS).all()
    assert (buckets[:, 3] == N_TIME_BUCKETS).all()
    assert buckets[0, 4] == 13


def test_time_buckets_equal_the_formula() -> None:
    """Also at the bounds, at fractions of a second, backwards, and at the cap."""
    rng = np.random.default_rng(0)
    bounds = [math.ceil(math.exp(0.301 * k)) for k in range(1, 100)]
    seconds = np.array(bounds + [b - 1 for b in bounds] + rng.integers(0, 10**9, 300).tolist())
    seconds = seconds[seconds < 9 * 10**12]
    time = torch.from_numpy(np.concatenate(([0], seconds * SECOND + rng.integers(0, SECOND, len(seconds)))))[None]
    found = time_buckets(time, time.shape[1])[0]
    expected = np.floor(np.log(np.maximum(seconds, 1)) / 0.301).astype(int).tolist()
    assert found[0, 1:].tolist() == expected
    assert found[1:, 0].tolist() == expected
    assert time_buckets(torch.tensor([[-(2**62), 2**62]]), 2).max() <= N_TIME_BUCKETS - 1


def test_bias_by_hand() -> None:
    """Two heads; bias[h, i, j] = distance[h, T - 1 - (i - j)] + time[h, bucket], nothing for an unknown time."""
    bias = RelativeBias(BiasConfig(distance=True, time=True), 2, 4)
    time = torch.tensor([[NO_TIME, 100 * SECOND, 101 * SECOND, 160 * SECOND]])
    buckets = time_buckets(time, 4)
    whole = bias(0, 4, buckets)
    assert whole.shape == (1, 2, 4, 4)
    for h in range(2):
        torch.testing.assert_close(whole[0, h, 3, 1], bias.distance[h, 1] + bias.time[h, 13])
        torch.testing.assert_close(whole[0, h, 2, 1], bias.distance[h, 2] + bias.time[h, 0])
        torch.testing.assert_close(whole[0, h, 3, 0], bias.distance[h, 0])
    torch.testing.assert_close(bias(2, 2, time_buckets(time, 2)), whole[:, :, 2:])
    torch.testing.assert_close(bias(0, 2, time_buckets(time[:, :2], 2)), whole[:, :, :2, :2])
    with pytest.raises(ValueError, match=r"bias\.time needs the events' times"):
        bias(0, 4, None)


def test_bias_off_is_absent() -> None:
    assert relative_bias(BiasConfig(), 2, 4) is None
    assert [name for name, _ in RelativeBias(BiasConfig(time=True), 2, 4).named_parameters()] == ["time"]
    assert [name for name, _ in RelativeBias(BiasConfig(distance=True), 2, 4).named_parameters()] == ["distance"]
