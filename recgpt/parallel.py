"""Pieces of work that each take a core of their own.

Small matrices gain little from two cores, two small pieces of work all the more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")


def on_each_core(function: Callable[[Piece], None], pieces: Iterable[Piece]) -> None:
    """Call function(piece) for every piece, as many at a time as torch has threads, each computing with one.

    The first error of a piece is raised, and pieces that have not begun are left. While it runs, torch has one thread
    in the whole process, so it is not for two callers at once. Modes of torch's threads (`no_grad`, autocast) are the
    function's to set.

    Args:
        function: does a piece; called in other threads, where torch has more than one.
        pieces: in the order in which they begin.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for piece in pieces:
            function(piece)
        return
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads, "on each core")
    try:
        for _ in pool.map(function, pieces):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
