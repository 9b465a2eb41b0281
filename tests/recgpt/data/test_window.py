"""Users in padded blocks of like windows."""

from __future__ import annotations

import numpy as np
import pytest

from recgpt.data.window import WindowConfig, like_windows

WINDOW = WindowConfig(length=200, stride=100, chunk=25)


def test_every_user_is_in_one_block_that_holds_his_window() -> None:
    n_events = np.random.default_rng(0).integers(0, 700, 3000)
    length = n_events - WINDOW.start(n_events)
    blocks = list(like_windows(n_events, WINDOW, 4800))
    assert sorted(np.concatenate([block.rows for block in blocks])) == list(range(3000))
    for block in blocks:
        assert length[block.rows].max() <= block.width <= WINDOW.length
        assert len(block.rows) <= block.size
        assert block.size * (block.width + 1) <= 4800


def test_blocks_have_few_shapes_and_little_padding() -> None:
    n_events = np.random.default_rng(0).integers(0, 700, 20_000)
    length = n_events - WINDOW.start(n_events)
    blocks = list(like_windows(n_events, WINDOW, 4800))
    shapes = {(block.size, block.width) for block in blocks}
    assert len(shapes) <= 22
    assert len({width for _, width in shapes}) >= len(shapes) - 1  # the last block is smaller
    assert sum(block.size * (block.width + 1) for block in blocks) < 1.06 * (length + 1).sum()


@pytest.mark.parametrize("length", [128, 200, 256])
def test_full_blocks_of_many_calls_have_few_numbers_of_positions(length: int) -> None:
    """For each of them code is compiled and kept."""
    rng, window = np.random.default_rng(0), WindowConfig(length=length, stride=length // 2, chunk=length // 8)
    blocks = [
        block
        for _ in range(300)
        for block in like_windows(rng.integers(0, 700, rng.integers(1, 600)), window, 4800)
        if block.full
    ]
    assert len(blocks) > 1500
    assert len({block.size * (block.width + 1) for block in blocks}) <= 8


def test_sizes_by_hand() -> None:
    """Windows of 30, 13, 0 and 9 events: 31 positions become 32, of which 96 hold 3 windows; then 1 becomes 8."""
    first, last = like_windows(np.array([30, 13, 0, 9]), WINDOW, 96)
    assert first.rows.tolist() == [0, 1, 3]
    assert (first.width, first.size, first.full) == (31, 3, True)
    assert last.rows.tolist() == [2]
    assert (last.width, last.size, last.full) == (7, 1, False)


@pytest.mark.parametrize(("events", "width"), [(0, 7), (7, 7), (8, 15), (127, 127), (128, 143), (191, 191), (200, 200)])
def test_widths(events: int, width: int) -> None:
    """With the first token multiples of 8 up to 128, of 16 beyond; a full window is a width of its own."""
    [block] = like_windows(np.array([events]), WINDOW, 4800)
    assert block.width == width


def test_a_window_longer_than_a_block_is_a_block_of_its_own() -> None:
    blocks = list(like_windows(np.array([150, 150]), WINDOW, 100))
    assert [block.size for block in blocks] == [1, 1]


def test_the_last_block_has_one_of_few_sizes() -> None:
    sizes = {list(like_windows(np.full(n, 7), WINDOW, 4800))[-1].size for n in range(1, 601)}
    assert len(sizes) < 60
    assert all(list(like_windows(np.full(n, 7), WINDOW, 4800))[-1].size < 1.13 * n + 1 for n in range(1, 601))


def test_no_users() -> None:
    assert list(like_windows(np.zeros(0, np.int64), WINDOW, 4800)) == []
