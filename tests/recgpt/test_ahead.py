"""Reading ahead: the same batches, errors in their place, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from recgpt.ahead import read_ahead


def threads() -> int:
    return sum(thread.name == "read ahead" for thread in threading.enumerate())


def test_the_same_batches_in_the_same_order() -> None:
    assert list(read_ahead(range(50))) == list(range(50))
    assert list(read_ahead([])) == []
    assert threads() == 0


def test_no_more_than_the_depth_is_made_ahead() -> None:
    made = []

    def batches() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    reader = read_ahead(batches(), depth=3)
    assert next(reader) == 0
    time.sleep(0.3)
    assert 3 <= len(made) <= 5  # the one in use, three that wait, and one in the hand
    reader.close()
    assert threads() == 0
    assert len(made) <= 6


def test_an_error_comes_where_its_batch_would() -> None:
    def batches() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("broken log")

    reader = read_ahead(batches())
    assert [next(reader), next(reader)] == [1, 2]
    with pytest.raises(ValueError, match="broken log"):
        next(reader)
    assert threads() == 0
