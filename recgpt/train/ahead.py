"""Batches made in a thread while the device computes on earlier ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")
_POLL = 0.1
"""Seconds between two looks at whether the reader has gone."""


def read_ahead(batches: Iterable[Batch], depth: int = 2) -> Iterator[Batch]:
    """The same batches in the same order, up to `depth` of them ready before they are asked for.

    An error of theirs is raised where its batch would have come. The thread ends with this generator, however that
    ends. Worth it where another device computes: on the CPU both would share its cores.

    Args:
        batches: what to read; used in the other thread alone.
        depth: batches that wait, at most.
    """
    ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(depth)
    gone = threading.Event()

    def put(item: tuple[Batch | None, BaseException | None]) -> bool:
        while not gone.is_set():
            try:
                ready.put(item, timeout=_POLL)
            except queue.Full:
                continue
            return True
        return False

    def fill() -> None:
        try:
            for batch in batches:
                if not put((batch, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=fill, daemon=True, name="batches")
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch  # type: ignore[misc]
    finally:
        gone.set()
        thread.join()
