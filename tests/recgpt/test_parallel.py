"""Work on each core: every piece once, several at a time, torch's threads as before, errors told."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from recgpt.parallel import on_each_core


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_piece_is_done_once_with_one_thread_of_torch(threads: int) -> None:
    done: list[tuple[int, int]] = []
    on_each_core(lambda piece: done.append((piece, torch.get_num_threads())), range(40))
    assert sorted(done) == [(piece, 1) for piece in range(40)]
    assert torch.get_num_threads() == threads
    on_each_core(done.append, [])


def test_as_many_pieces_at_a_time_as_torch_has_threads(threads: int) -> None:
    together = threading.Barrier(threads)
    on_each_core(lambda _: together.wait(timeout=20) and None, range(threads))  # fewer at a time would break it


def test_an_error_ends_it_and_leaves_torch_as_it_was(threads: int) -> None:
    begun = []

    def piece(number: int) -> None:
        begun.append(number)
        if number == 5:
            raise ValueError("piece 5")

    with pytest.raises(ValueError, match="piece 5"):
        on_each_core(piece, range(100_000))
    assert len(begun) < 100_000
    assert torch.get_num_threads() == threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("on each core")]
