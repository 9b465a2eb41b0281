"""Values made in a thread while the caller works on earlier ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

Value = TypeVar("Value")
_POLL = 0.1
"""Seconds between two looks at whether the reader has gone."""


def read_ahead(values: Iterable[Value], depth: int = 2, stop: Callable[[], object] | None = None) -> Generator[Value]:
    """The same values in the same order, up to `depth` of them ready before they are asked for.

    An error of theirs is raised where its value would have come. The thread ends with this generator, however that
    ends. Worth it where making and using them need different things, such as a GPU and the CPU.

    Args:
        values: what to read; used in the other thread alone, where a generator is closed too.
        depth: values that wait, at most.
        stop: breaks off the making of a value. Called when the generator ends before the thread, until that ends too.
    """
    ready: queue.Queue[tuple[Value | None, BaseException | None]] = queue.Queue(depth)
    gone = threading.Event()

    def put(item: tuple[Value | None, BaseException | None]) -> bool:
        while not gone.is_set():
            try:
                ready.put(item, timeout=_POLL)
            except queue.Full:
                continue
            return True
        return False

    def fill() -> None:
        try:
            for value in values:
                if not put((value, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))
        finally:
            if isinstance(values, Generator):
                values.close()  # here: another thread cannot while it runs

    thread = threading.Thread(target=fill, daemon=True, name="read ahead")
    thread.start()
    try:
        while True:
            value, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield value  # type: ignore[misc]
    finally:
        gone.set()
        while thread.is_alive():
            if stop is not None:
                stop()  # more than once: it is lost on a query that has yet to begin
            thread.join(_POLL)
