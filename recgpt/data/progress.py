"""Stages with counts on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType


class Stages:
    """Shows one line a stage: its name, a running count, its seconds.

    Args:
        shown: show anything at all.
    """

    def __init__(self, shown: bool) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, quiet=not shown, highlight=False)

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int], None]]:
        """Time a stage; call the yielded function with the count so far."""
        started, count = time.perf_counter(), 0
        with self.console.status(name) as status:

            def told(n: int) -> None:
                nonlocal count
                count = n
                status.update(f"{name}: {n:,}")

            yield told
        shown = f"{count:>13,}" if count else " " * 13
        self.console.print(f"{name:<24}{shown}  {time.perf_counter() - started:8.1f} s")

    def warn(self, lines: Sequence[str]) -> None:
        """Tell what deserves a look."""
        for line in lines:
            self.console.print(f"note: {line}", soft_wrap=True, markup=False)
