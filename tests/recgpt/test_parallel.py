"""Work on each core: every piece once and in order, several at a time, torch's threads as before, errors told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from recgpt.parallel import on_each_core


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def late_first(piece: int) -> tuple[int, int]:
    time.sleep(0.01 * (piece % 3 == 0))
    return piece, torch.get_num_threads()


def test_results_come_in_order_each_made_with_one_thread_of_torch(threads: int) -> None:
    assert list(on_each_core(late_first, range(40))) == [(piece, 1) for piece in range(40)]
    assert torch.get_num_threads() == threads
    assert list(on_each_core(late_first, [])) == []


def test_as_many_pieces_at_a_time_as_torch_has_threads(threads: int) -> None:
    together = threading.Barrier(threads)
    list(on_each_core(lambda _: together.wait(timeout=20), range(threads)))  # fewer at a time would break it


def test_pieces_are_read_as_they_are_needed(threads: int) -> None:
    read = []

    def pieces() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    with closing(on_each_core(lambda piece: piece, pieces())) as results:  # type: ignore[type-var]
        assert next(results) == 0
        assert len(read) <= threads + 1
    assert torch.get_num_threads() == threads


def test_a_piece_may_call_it_again(threads: int) -> None:
    def piece(number: int) -> list[int]:
        return list(on_each_core(lambda part: number + part, range(3)))

    assert list(on_each_core(piece, range(5))) == [[n, n + 1, n + 2] for n in range(5)]


def test_an_error_comes_in_its_place_and_leaves_torch_as_it_was(threads: int) -> None:
    begun = []

    def piece(number: int) -> int:
        begun.append(number)
        if number == 5:
            raise ValueError("piece 5")
        return number

    results = on_each_core(piece, range(100_000))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="piece 5"):
        next(results)
    assert len(begun) < 100
    assert torch.get_num_threads() == threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("on each core")]
