"""Pieces of work that each take a core of their own.

Small matrices gain little from two cores, two small pieces of work all the more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def on_each_core(function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
    """function(piece) of every piece, in order, as many at a time as torch has threads, each computing with one.

    Pieces are read one by one, at most one more than there are threads ahead of what was taken. An error of a piece
    comes in its place, and pieces that have not begun are left. Until the end torch has one thread in the whole
    process, so it is not for two callers at once; a piece that calls it again does that in its own thread. Modes of
    torch's threads (`no_grad`, autocast) are the function's to set.

    Args:
        function: does a piece; called in other threads, where torch has more than one.
        pieces: in the order in which they begin.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, pieces)
        return
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads, "on each core")
    begun: deque[Future[Result]] = deque()
    try:
        for piece in pieces:
            begun.append(pool.submit(function, piece))
            if len(begun) > threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        finally:
            torch.set_num_threads(threads)
